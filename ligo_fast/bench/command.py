"""`ligo-fast bench`: which cases, whether they fit, their rows, and a trace of their calls."""

from __future__ import annotations

import gc
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..compute.backends import resolve_precision
from ..errors import GrowthError
from ..info import backends
from ..methods import resolve
from .cases import CASES, DTYPES, Case
from .measure import OURS, PLAIN, Bench, Effort, random_gradients
from .models import read_shape
from .timing import Stopwatch

HEADER = ["", "ms (quartiles)", "GB/s", "TFLOP/s", "of the floor", "over plain torch", "extra memory"]
WORK = {"apply": "apply_", "pullback": "pull-back"}
MEMINFO = Path("/proc/meminfo")


def chosen(
    names: Sequence[str], shapes: Sequence[str], family: str, method: str | None, dtype: str | None
) -> list[Case]:
    """The cases that a command line asks for, the method and dtype on top.

    Raises:
        GrowthError: for a case, shape, family, method or dtype that there is not.
    """
    if dtype is not None and dtype not in DTYPES:
        raise GrowthError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if unknown := [name for name in names if name not in CASES]:
        raise GrowthError(f"case {unknown[0]!r} is none of {', '.join(CASES)}")
    if method is not None:
        resolve(method)
    found = [CASES[name] for name in names]
    found += [Case(shape, f"{family} {shape}", read_shape(shape, family)) for shape in shapes]
    found = found or [CASES["bert"], CASES["net2net"]]
    return [
        Case(c.name, c.title, c.pair, method or c.method, DTYPES[dtype] if dtype else c.dtype, c.group)
        for c in found
    ]


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had; None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
    return next((int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable")), None)


def check_fits(case: Case, device: torch.device) -> None:
    """Raises GrowthError, with the numbers, for a case that would not fit the memory."""
    needed = case.nbytes + (case.pair.parameters()[1] * case.dtype.itemsize if case.method == "ligo" else 0)
    free = free_bytes(device)
    if free is not None and 1.1 * needed > free:
        raise GrowthError(
            f"case {case.name}: weights and gradients are {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB of "
            f"memory are free on {device}"
        )


def measure(cases: Sequence[Case], device: torch.device, effort: Effort) -> Iterator[dict[str, Any]]:
    """A row for every case and direction, as soon as it is there; one that is refused has the reason.

    Raises:
        GrowthError: for a case that does not fit the memory; before anything runs.
    """
    watch = Stopwatch(device)
    for case in cases:
        check_fits(case, device)
    for case in cases:
        yield from _rows(case, watch, effort)
        gc.collect()


def _rows(case: Case, watch: Stopwatch, effort: Effort) -> Iterator[dict[str, Any]]:
    row = case.facts() | {"case": case.name, "work": "apply"}
    try:
        op = case.operator(watch.device)
        bench = Bench(op, watch, effort)
        for work in WORK if op.is_learned else ("apply",):
            row["work"] = work
            yield row | bench.measure(work)
    except GrowthError as error:
        yield row | {"status": "failed", "reason": str(error)}


def facts(device: torch.device) -> dict[str, Any]:
    """What a result has to name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": str(device),
        "hardware": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"ligo_fast": __version__, "torch": torch.__version__},
        "backends": backends(),
        "float32 products": resolve_precision("auto", torch.float32) if device.type == "cuda" else "ieee",
    }


def cells(row: dict[str, Any]) -> list[str]:
    """A row as the table shows it; the reason where nothing was measured."""
    first = f"{row['title']}, {row['dtype']}, {row['method']}: {WORK[row['work']]}"
    if row["status"] != "measured":
        return [first, f"{row['status']}: {row['reason']}", *[""] * (len(HEADER) - 2)]
    ours, plain = row["variants"][OURS], row["speed-up"].get(PLAIN)
    low, middle, high = (f"{1e3 * ours['seconds'][k]:.3g}" for k in ("q1", "median", "q3"))
    extra = ours["extra_bytes"]
    return [
        first,
        f"{middle} ({low} to {high})",
        f"{ours['gb_per_second']:.1f}",
        f"{ours['tflops']:.2f}" if row["fewest flops"] else "",
        f"{ours['floor / time']['median']:.0%}",
        f"{plain['median']:.2f}x" if plain else row["variants"][PLAIN]["reason"],
        "unknown" if extra is None else f"{extra / 2**20:.0f} MiB",
    ]


def trace(cases: Sequence[Case], device: torch.device, out: Path) -> None:
    """Write a Chrome trace (chrome://tracing, ui.perfetto.dev) of a warmed-up call of each.

    Raises:
        GrowthError: when the file cannot be written; before anything runs.
    """
    try:
        out.open("a").close()
    except OSError as error:
        raise GrowthError(f"{out}: {error.strerror}") from None
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    calls = []
    for case in cases:
        check_fits(case, device)
        op = case.operator(device)
        if op.is_learned:
            random_gradients(op)
        for work, run in {"apply": op.apply_, "pullback": op.pullback}.items():
            if work == "apply" or op.is_learned:
                run()
                calls.append((f"{case.name}: {WORK[work]}", run))
    with torch.profiler.profile(activities=activities) as profile:
        for name, run in calls:
            with torch.profiler.record_function(name):
                run()
    profile.export_chrome_trace(str(out))
