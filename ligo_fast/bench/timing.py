"""Seconds, memory and launches of a call: in turn with its peers, with inputs that are not in the cache.

On a GPU calls are timed with CUDA events. Before every call a buffer larger than the last-level cache is
written, which on a GPU also covers the time in which the host prepares the call, as it would in training.
There another one is read after it, so that the cache need not write anything back while the call is timed.
"""

from __future__ import annotations

import ctypes
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from ..native import cpu, cuda

Times = dict[str, list[float]]
Summary = dict[str, float]
CACHE = Path("/sys/devices/system/cpu/cpu0/cache")


def nothing() -> None:
    """For a call that needs no preparation."""


@dataclass
class Variant:
    """A call to time; `before` and `after` are not timed."""

    run: Callable[[], object]
    before: Callable[[], object] = nothing
    after: Callable[[], object] = nothing

    def __call__(self) -> None:
        self.before()
        self.run()
        self.after()


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


def memcpy(source: Tensor, target: Tensor) -> Callable[[], object]:
    """libc's memcpy by as many threads as torch has, a part each: faster than `copy_` where that is large."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)
    pairs = list(zip(source.chunk(threads), target.chunk(threads), strict=True))

    def run() -> None:
        list(pool.map(lambda p: ctypes.memmove(p[1].data_ptr(), p[0].data_ptr(), p[0].nbytes), pairs))

    return run


def copy_runner(megabytes: int, device: torch.device | str = "cpu") -> tuple[Callable[[], object], int]:
    """The fastest copy there is, of more than fits the caches, and the bytes it reads and writes."""
    source = torch.randn(megabytes * 2**18, device=device)
    target = torch.zeros_like(source)
    on_cpu = source.device.type == "cpu"
    return memcpy(source, target) if on_cpu else lambda: target.copy_(source), 2 * source.nbytes


@contextmanager
def backend(name: str) -> Iterator[None]:
    """LIGO_FAST_BACKEND for a while; "plain torch" is "torch" without the compiled C++ on top."""
    old, compiled = os.environ.get("LIGO_FAST_BACKEND"), (cpu.extension, cuda.extension)
    os.environ["LIGO_FAST_BACKEND"] = name.removeprefix("plain ")
    if name == "plain torch":
        cpu.extension = cuda.extension = None
    try:
        yield
    finally:
        cpu.extension, cuda.extension = compiled
        if old is None:
            del os.environ["LIGO_FAST_BACKEND"]
        else:
            os.environ["LIGO_FAST_BACKEND"] = old


def cache_bytes(device: torch.device) -> int:
    """The largest cache, as far as it is known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    found = [0]
    for file in CACHE.glob("index*/size"):
        with suppress(OSError, ValueError):
            found.append(int(file.read_text().strip().removesuffix("K")) << 10)
    return max(found) or 64 << 20


def status_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def resident() -> int:
    """Resident size after free memory has been returned."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status_bytes("VmRSS")


def peak_during(run: Callable[[], object]) -> int:
    """Highest resident size while `run` works."""
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return status_bytes("VmHWM")


class Stopwatch:
    """Seconds of calls on one device."""

    def __init__(self, device: torch.device, cold: bool = True) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        size = max(2 * cache_bytes(device), 1 << 30 if self.on_gpu else 0) if cold else 1
        self._flush = torch.ones(size, dtype=torch.int8, device=device)
        clean = 3 * cache_bytes(device) if cold and self.on_gpu else 0
        self._clean = torch.ones(clean, dtype=torch.int8, device=device)

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def flush(self) -> None:
        """Drive everything else out of the caches; on a GPU what was written there, too."""
        self._flush.add_(1)
        if self.on_gpu:
            self._clean.sum()

    def seconds(self, variants: Mapping[str, Variant], rounds: int) -> Times:
        """Of every warmed-up variant in every round; each round begins with another one."""
        times: Times = {name: [] for name in variants}
        names = list(variants)
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(self._once(variants[name]))
        return times

    def _once(self, variant: Variant) -> float:
        variant.before()
        self.synchronize()  # nothing of the last call is left
        if not self.on_gpu:
            self.flush()
            start = perf_counter()
            variant.run()
            seconds = perf_counter() - start
        else:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            stream = torch.cuda.current_stream(self.device)  # which need not be the current device
            self.flush()
            events[0].record(stream)
            variant.run()
            events[1].record(stream)
            self.synchronize()
            seconds = events[0].elapsed_time(events[1]) / 1e3
        variant.after()
        return seconds

    def rounds(self, variants: Mapping[str, Variant], budget: float, most: int, least: int = 5) -> int:
        """How many rounds fit a budget of seconds, `least` at least; and a second warm-up of each."""
        if not budget:
            return least
        start = perf_counter()
        for variant in variants.values():
            self.flush()
            variant()
        self.synchronize()
        return max(least, min(most, int(budget / (perf_counter() - start))))

    def extra_bytes(self, variant: Variant) -> int | None:
        """Peak of memory beyond that before the call and its preparation; None where nothing tells.

        On a GPU of what torch allocated, on a CPU of the resident size.
        """
        self.synchronize()
        try:
            base = torch.cuda.memory_allocated(self.device) if self.on_gpu else resident()
            variant.before()
            self.synchronize()
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats(self.device)
                variant.run()
                self.synchronize()
                return torch.cuda.max_memory_allocated(self.device) - base
            return peak_during(variant.run) - base
        except OSError:  # no Linux
            return None
        finally:
            variant.after()

    def launches(self, variant: Variant) -> int | None:
        """Kernels of one call; None on a CPU."""
        if not self.on_gpu:
            return None
        variant.before()
        self.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            variant.run()
            self.synchronize()
        variant.after()
        names = [e.name for e in profile.events() if e.device_type.name == "CUDA"]
        return sum(not name.startswith(("Memcpy", "Memset")) for name in names)
