"""Interleaved timing with warm caches, and the facts that a result has to name."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ligo_fast.bench.timing import Summary, Times, copy_runner, matmul_runner, ratio, summarize
from ligo_fast.native import cpu

__all__ = [
    "Clock", "Summary", "Times", "begin", "copy_runner", "hardware", "interleave", "matmul_runner",
    "provenance", "ratio", "save", "summarize", "versions", "write_whole",
]  # fmt: skip
Clock = Callable[[], float]
RESULTS = "benchmarks/results"
FOLDER = Path(__file__).parent  # in the repository


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
    """Python, the packages that matter, and whether our compiled part was there."""
    found = {"python": platform.python_version(), "ligo_fast._cpu": cpu.state}
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def provenance(arguments: Sequence[str], module: str = "benchmarks.cpu") -> dict[str, object]:
    """Commit, whether the tree differed from it (None: no way to tell), command and date.

    What the benchmarks write, benchmarks/results, is no part of the tree here.
    Where the code runs without its git folder, LIGO_FAST_COMMIT may name the commit. Of a path to somewhere
    on this machine the last part is told.
    """
    told = [f".../{Path(a).name}" if os.path.isabs(a) else a for a in arguments]
    changes = _git("status", "--porcelain", "--", ":/", f":(top,exclude){RESULTS}")
    return {
        "commit": _git("rev-parse", "HEAD") or os.environ.get("LIGO_FAST_COMMIT", "unknown"),
        "dirty": None if changes is None else changes != "",
        "command": " ".join(["python -m", module, *told]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def begin(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """A report with the rows that an earlier run of the same commit, command and machine left there."""
    report |= {"hardware": hardware(), "versions": versions(), "rows": {}}
    if path.exists():
        old = json.loads(path.read_text())
        same = all(old.get(key) == report[key] for key in ("commit", "dirty", "command", "versions"))
        if same and not report["dirty"] and old["hardware"]["cpu"] == report["hardware"]["cpu"]:
            report["rows"] = old["rows"]
    return report


def save(path: Path, report: dict[str, Any]) -> None:
    """Write a report, whole or not at all."""
    write_whole(path, json.dumps(report, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """A reader finds the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None
