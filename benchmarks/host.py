"""What a call costs the host: Python, reading where hundreds of tensors lie, and Triton's launches.

BERT (6 layers, 512) grows to (12, 768) on the plan of the Triton kernels, on the CPU, into a CUDA driver
that does nothing (`benchmarks.stub`): so no GPU is needed, and the driver's own time for a launch is left
out, as is that for copying addresses to a device. One call after the other finds everything in the caches, as
no step of training does: those after "cold" come after a write larger than the last-level cache, which no
step of training does either. A pull-back finds in the workspace what a call before left there, unless the
factors are new.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

import ligo_fast as lf
from benchmarks import measure, models
from benchmarks.stub import Stub
from ligo_fast.bench.cases import CASES, Case
from ligo_fast.bench.timing import Stopwatch

OUT = Path("benchmarks/results/host.json")
YARDSTICK = "1000 data_ptr()"
COLD, FEWER = "cold: ", 20


def run(case: Case, rounds: int, stub: Stub) -> dict[str, object]:
    """Microseconds of every call, in turn, with what comes before a call left out of its time."""
    small, large = models.build(case)
    op = lf.GrowthOperator(small, large)
    parameters = list(large.parameters())
    sets = cycle([[torch.empty_like(p) for p in parameters] for _ in range(2)])

    def new_gradients() -> None:
        for p, g in zip(parameters, next(sets), strict=True):
            p.grad = g

    def new_factors() -> None:
        new_gradients()
        factor.add_(0)  # it was written, for all that torch knows

    def cold_gradients() -> None:
        new_gradients()
        watch.flush()

    watch = Stopwatch(torch.device("cpu"))
    factor = next(op.parameters()).detach()
    thousand = (parameters * 1000)[:1000]
    calls: dict[str, tuple[Callable[[], None], Callable[[], object]]] = {
        YARDSTICK: (lambda: None, lambda: list(map(Tensor.data_ptr, thousand))),
        "apply_": (lambda: None, op.apply_),
        "pullback, gradients where they were": (lambda: None, op.pullback),
        "pullback, new gradients": (new_gradients, op.pullback),
        "pullback, new gradients and factors": (new_factors, op.pullback),
    }
    cold: dict[str, tuple[Callable[[], None], Callable[[], object]]] = {
        f"{COLD}apply_": (watch.flush, op.apply_),
        f"{COLD}pullback, new gradients": (cold_gradients, op.pullback),
    }
    new_gradients()
    times: measure.Times = {name: [] for name in (*calls, *cold)}
    launches = {}
    # a write takes far longer than a call
    turns = [calls] * (3 + rounds) + [cold] * (3 + max(2, rounds // FEWER))
    for turn, each in enumerate(turns):
        for name, (prepare, call) in each.items():
            prepare()
            before = stub.launches
            start = perf_counter()
            call()
            seconds = perf_counter() - start
            launches[name] = stub.launches - before
            if 3 <= turn < 3 + rounds or turn >= 6 + rounds:
                times[name].append(1e6 * seconds)
    del launches[YARDSTICK]
    return {
        "tensors": {"small": len(list(small.parameters())), "large": len(parameters)},
        "factors": len(list(op.parameters())),
        "launches": launches,
        "microseconds": {name: measure.summarize(t) for name, t in times.items()},
        f"ratio to {YARDSTICK}": {
            n: measure.ratio(times[n], times[YARDSTICK]) for n in launches if not n.startswith(COLD)
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5000)
    quick = "tiny models; tries the benchmark itself"
    parser.add_argument("--quick", "--rehearse", action="store_true", help=quick)
    parser.add_argument("--out", type=Path, default=OUT)
    told = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(told)
    case = CASES["tiny-bert" if options.quick else "bert"]
    result = measure.provenance(told, "benchmarks.host")
    result |= {"hardware": measure.hardware(), "versions": measure.versions()}
    result |= {"case": case.name, "models": models.facts(case)}
    with tempfile.TemporaryDirectory() as folder:
        stub = Stub(Path(folder))
        os.environ["LIGO_FAST_BACKEND"] = "triton"
        result |= run(case, options.rounds, stub)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["microseconds"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
