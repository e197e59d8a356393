"""Interleaved timing, machine rates and the facts that a result has to name."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from time import perf_counter

import torch

Times = dict[str, list[float]]
Summary = dict[str, float]
Clock = Callable[[], float]


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int, warmups: int = 1, clock: Clock = perf_counter
) -> Times:
    """Seconds of every variant in every round; a round runs each variant once, in the given order."""
    times: Times = {name: [] for name in variants}
    for turn in range(warmups + rounds):
        for name, run in variants.items():
            start = clock()
            run()
            if turn >= warmups:
                times[name].append(clock() - start)
    return times


def summarize(values: list[float]) -> Summary:
    """Median, quartiles and the smallest value."""
    if len(values) == 1:
        values = values * 2
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "best": min(values)}


def ratio(numerator: list[float], denominator: list[float]) -> Summary:
    """Summary of the round-by-round quotient, in which slow spells of the machine cancel.

    `best` is the quotient of the smallest values: what a machine without other work would show.
    """
    quotients = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return summarize(quotients) | {"best": min(numerator) / min(denominator)}


def matmul_runner(
    size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], object], int]:
    """A product of two square matrices and its FLOPs."""
    left, right, out = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    return lambda: torch.mm(left, right, out=out), 2 * size**3


def copy_runner(megabytes: int, device: torch.device | str = "cpu") -> tuple[Callable[[], object], int]:
    """A copy that does not fit the caches and the bytes it reads and writes."""
    source = torch.randn(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def hardware() -> dict[str, object]:
    """Processor, cores and load."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Python and the packages that matter."""
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def provenance(arguments: Sequence[str], module: str = "benchmarks.cpu") -> dict[str, object]:
    """Commit, whether the tree differed from it (None: no way to tell), command and date.

    Where the code runs without its git folder, LIGO_FAST_COMMIT may name the commit. Of a path to somewhere
    on this machine the last part is told.
    """
    told = [f".../{Path(a).name}" if os.path.isabs(a) else a for a in arguments]
    changes = _git("status", "--porcelain")
    return {
        "commit": _git("rev-parse", "HEAD") or os.environ.get("LIGO_FAST_COMMIT", "unknown"),
        "dirty": None if changes is None else changes != "",
        "command": " ".join(["python -m", module, *told]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None
