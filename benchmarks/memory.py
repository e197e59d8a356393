"""Peak resident memory of growing, in fresh processes: `python -m benchmarks.memory`.

Extra memory is what the process holds at its peak beyond the small model, the large model, the factors and,
for the pullback, the gradients of both: temporaries, saved activations and library workspaces.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks import published
from benchmarks.models import build, parameter_bytes
from benchmarks.published import Factors
from ligo_fast.bench.cases import CASES, Case, ligo
from ligo_fast.bench.timing import peak_during, resident

# Large blocks go back to the system at once, so that freed memory cannot hide a later peak.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def ours(case: Case) -> dict[str, int]:
    """Extra bytes of apply_ and pullback."""
    small, large = build(case)
    base = resident()
    op = ligo(small, large)
    base += sum(p.nbytes for p in op.parameters())
    forward = peak_during(op.apply_) - base
    for parameter in [*large.parameters(), *op.parameters()]:
        parameter.grad = torch.ones_like(parameter)
        base += parameter.nbytes
    return {"forward": forward, "backward": peak_during(op.pullback) - base}


def published_sequence(case: Case) -> dict[str, int]:
    """Extra bytes of the published forward (saving for backward) and backward."""
    small, large = build(case)
    factors = Factors.from_maps(*published.initial_maps(small, large), shared_maps=True)
    stacked = published.stack_layers(small, tied=True)
    grads = {name: torch.ones_like(p) for name, p in large.named_parameters()}
    large_bytes = parameter_bytes(large)
    del small, large
    for leaf in factors.leaves():
        leaf.grad = torch.zeros_like(leaf)
    base = resident() + large_bytes
    grown: dict[str, torch.Tensor] = {}
    forward = peak_during(lambda: grown.update(published.grow(stacked, factors))) - base
    return {"forward": forward, "backward": peak_during(lambda: published.backward(grown, grads)) - base}


VARIANTS: dict[str, Callable[[Case], dict[str, int]]] = {"ours": ours, "published": published_sequence}


def measure(variant: str, case: Case) -> dict[str, int]:
    """Extra bytes of one variant; a tiny pair goes first, to load the code."""
    VARIANTS[variant](CASES["tiny-bert"])
    return VARIANTS[variant](case)


def extra_bytes(quick: bool) -> dict[str, dict[str, int]]:
    """What `main` prints, from a process with the allocator's settings."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *(["--quick"] if quick else [])],
        cwd=Path(__file__).parents[1],
        env=os.environ | ALLOCATOR,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure every variant in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models")
    case = CASES["tiny-bert" if parser.parse_args().quick else "bert"]
    extra: dict[str, dict[str, int]] = {}
    for variant in VARIANTS:
        # forked before torch has started any thread, so it imports nothing again
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as fresh:
            extra[variant] = fresh.submit(measure, variant, case).result()
    print(json.dumps(extra))


if __name__ == "__main__":
    main()
