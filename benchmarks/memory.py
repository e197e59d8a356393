"""Peak resident memory of growing, in fresh processes: `python -m benchmarks.memory`.

Extra memory is what the process holds at its peak beyond the small model, the large model, the factors and,
for the pullback, the gradients of both: temporaries, saved activations and library workspaces.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import ligo_fast as lf
from benchmarks import published
from benchmarks.models import PAPER, QUICK, Pair, parameter_bytes
from benchmarks.published import Factors

# Large blocks go back to the system at once, so that freed memory cannot hide a later peak.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def status_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_during(run: Callable[[], object]) -> int:
    """Highest resident size while `run` works."""
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return status_bytes("VmHWM")


def resident() -> int:
    """Resident size after free memory has been returned."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status_bytes("VmRSS")


def ours(pair: Pair) -> dict[str, int]:
    """Extra bytes of apply_ and pullback."""
    small, large = pair.build()
    base = resident()
    op = lf.GrowthOperator(small, large, method="ligo", seed=0, tie=True, width_init="random")
    base += sum(p.nbytes for p in op.parameters())
    forward = peak_during(op.apply_) - base
    for parameter in [*large.parameters(), *op.parameters()]:
        parameter.grad = torch.ones_like(parameter)
        base += parameter.nbytes
    return {"forward": forward, "backward": peak_during(op.pullback) - base}


def published_sequence(pair: Pair) -> dict[str, int]:
    """Extra bytes of the published forward (saving for backward) and backward."""
    small, large = pair.build()
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


VARIANTS: dict[str, Callable[[Pair], dict[str, int]]] = {"ours": ours, "published": published_sequence}


def measure(variant: str, pair: Pair) -> dict[str, int]:
    """Extra bytes of one variant; a tiny pair goes first, to load the code."""
    VARIANTS[variant](QUICK)
    return VARIANTS[variant](pair)


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
    pair = QUICK if parser.parse_args().quick else PAPER
    extra: dict[str, dict[str, int]] = {}
    for variant in VARIANTS:
        # forked before torch has started any thread, so it imports nothing again
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as fresh:
            extra[variant] = fresh.submit(measure, variant, pair).result()
    print(json.dumps(extra))


if __name__ == "__main__":
    main()
