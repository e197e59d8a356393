"""Ours beside what else does the same work on the CPU, in turn in one run: `python -m benchmarks.peers`.

Growing BERT and its pull-back beside the published sequence, eager and compiled; selections beside
index_select and `torch._foreach_copy_`; the single ops beside dense products and FastKron. What is wrong has
no number. A second run of the same commit goes on where one was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ligo_fast as lf
from benchmarks.measure import begin, provenance, save
from benchmarks.ops import OpBench
from benchmarks.select import FOREACH, INDEX, by_index
from benchmarks.sequence import Sequence as Published
from ligo_fast.bench.cases import CASES, OPS
from ligo_fast.bench.measure import QUICK, Bench, Effort, Peer, parameter_bytes
from ligo_fast.bench.timing import Stopwatch, Variant

RESULTS = Path(__file__).parent / "results" / "peers.json"
PUBLISHED, COMPILED = "published", "compiled"
ROWS = ("bert", "stack", "net2net", "blend", "expand", "expand-attention", "select")
TINY = ("tiny-bert", "tiny-net2net", "tiny-blend", "tiny-expand", "tiny-select")


def published(op: lf.GrowthOperator, dtype: torch.dtype, compiled: bool = True) -> dict[str, Published]:
    """The published sequence in the weights' dtype; under torch.compile it is compiled once for a layer."""
    found = {PUBLISHED: Published(op, dtype)}
    if compiled:
        found[COMPILED] = Published(op, dtype, compiled=True)
    return found


def peers(op: lf.GrowthOperator, work: str, sequences: Mapping[str, Published]) -> dict[str, Peer]:
    """Doing "apply" or "pullback" of an operator, from the same factors and gradients."""
    return {name: _peer(op, work, sequence) for name, sequence in sequences.items()}


def _peer(op: lf.GrowthOperator, work: str, sequence: Published) -> Peer:
    if work == "apply":
        variant = Variant(sequence.forward, sequence.release, sequence.release)
        return Peer(variant, lambda: sequence.grown, parameter_bytes(op.large))

    def before() -> None:
        for leaf in (*sequence.width.values(), *sequence.mixes.values()):
            leaf.grad = None
        sequence.forward()

    def run() -> None:
        sequence.backward({n: p.grad for n, p in op.large.named_parameters() if p.grad is not None})

    def results() -> dict[str, Tensor]:
        return {n: g for kind in sequence.gradients(op).values() for n, g in kind.items()}

    return Peer(Variant(run, before, sequence.release), results, parameter_bytes(op.large))


def selecting(op: lf.GrowthOperator) -> dict[str, Peer]:
    """What else writes the weights of a training-free method; nothing where the compiled selection is off."""
    op.apply_()
    plan = op._execution.compiled.selection
    if plan is None or plan.rejected:
        return {}
    outs = [p.detach() for p in op.large.parameters()]
    ours = [t.clone() for t in outs]
    runs = {INDEX: by_index(plan.table.items), FOREACH: lambda: torch._foreach_copy_(outs, ours)}
    return {name: Peer(Variant(run), lambda: dict(op.large.named_parameters())) for name, run in runs.items()}


def measure(
    name: str, watch: Stopwatch, effort: Effort, compiled: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a case by "case: work"."""
    if name in OPS:
        yield f"{name}: op", OpBench(OPS[name]).measure(watch, effort)
        return
    case = CASES[name]
    op = case.operator()
    bench = Bench(op, watch, effort)
    if not op.is_learned:
        yield f"{name}: apply", bench.measure("apply", selecting(op))
        return
    sequences = published(op, case.dtype, compiled)
    for work in ("apply", "pullback"):
        yield f"{name}: {work}", bench.measure(work, peers(op, work, sequences))


def main(arguments: Sequence[str] | None = None) -> None:
    """Every row; what was measured goes to the JSON after each case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the benchmark itself")
    parser.add_argument("--seconds", type=float, default=12.0, help="for the rounds of a row")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(arguments)
    told = sys.argv[1:] if arguments is None else arguments
    report = begin(options.out, provenance(told, "benchmarks.peers") | {"quick": options.quick})
    watch = Stopwatch(torch.device("cpu"), cold=not options.quick)
    effort = QUICK if options.quick else Effort(options.seconds, product=3072)
    for name in TINY if options.quick else ROWS:
        if any(key.startswith(f"{name}: ") for key in report["rows"]):
            continue
        for key, row in measure(name, watch, effort, compiled=not options.quick):
            if row["status"] != "measured":
                sys.exit(f"{key}: {row['status']}, {row['reason']}; nothing is reported")
            report["rows"][key] = row
            for peer, found in row["variants"].items():
                seconds = found["seconds"]
                said = (
                    f"{1e3 * seconds['median']:10.2f} ms" if seconds else f"not measured: {found['reason']}"
                )
                print(f"{key:<24}{peer:<24}{said}", flush=True)
        save(options.out, report)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
