"""Time, memory, launches and waits of a call on a GPU; on a CPU wall clock only, for rehearsals.

Calls are timed with CUDA events, in turn, each after a write that is larger than the L2 cache. It takes most
of a millisecond, in which the host prepares the call, as it would during a training step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Times


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


@contextmanager
def backend(name: str) -> Iterator[None]:
    """LIGO_FAST_BACKEND for a while."""
    old = os.environ.get("LIGO_FAST_BACKEND")
    os.environ["LIGO_FAST_BACKEND"] = name
    try:
        yield
    finally:
        if old is None:
            del os.environ["LIGO_FAST_BACKEND"]
        else:
            os.environ["LIGO_FAST_BACKEND"] = old


class Stopwatch:
    """Seconds of calls on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        if self.on_gpu:
            size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
            self.flush = torch.ones(max(size, 1 << 30), dtype=torch.int8, device=device)

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, variants: Mapping[str, Variant], rounds: int) -> Times:
        """Of every warmed-up variant in every round."""
        times: Times = {name: [] for name in variants}
        for _ in range(rounds):
            for name, variant in variants.items():
                times[name].append(self._once(variant))
        return times

    def _once(self, variant: Variant) -> float:
        variant.before()
        if not self.on_gpu:
            start = perf_counter()
            variant.run()
            seconds = perf_counter() - start
        else:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.synchronize()  # nothing of the last call is left, and the flush covers the host's start
            self.flush.add_(1)
            events[0].record()
            variant.run()
            events[1].record()
            self.synchronize()
            seconds = events[0].elapsed_time(events[1]) / 1e3
        variant.after()
        return seconds

    def rounds(self, variants: Mapping[str, Variant], budget: float, most: int) -> int:
        """How many rounds fit a budget of seconds, five at least; and a second warm-up of each."""
        start = perf_counter()
        for variant in variants.values():
            variant()
        self.synchronize()
        return max(5, min(most, int(budget / (perf_counter() - start))))

    def facts(self, variant: Variant) -> dict[str, Any]:
        """Host milliseconds until the call returns, kernel launches, extra memory, whether the host waits."""
        if not self.on_gpu:
            return {}
        host = []
        for _ in range(5):
            variant.before()
            self.synchronize()
            start = perf_counter()
            variant.run()
            host.append(perf_counter() - start)
            variant.after()
        return {
            "host_ms": 1e3 * median(host),
            "launches": self._launches(variant),
            "extra_bytes": self._extra_bytes(variant),
            "host_sync": self._waits(variant),
        }

    def _launches(self, variant: Variant) -> int:
        variant.before()
        self.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            variant.run()
            self.synchronize()
        variant.after()
        names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum(not name.startswith(("Memcpy", "Memset")) for name in names)

    def _extra_bytes(self, variant: Variant) -> int:
        """Peak of allocated memory beyond that before the call and its preparation."""
        self.synchronize()
        base = torch.cuda.memory_allocated(self.device)
        variant.before()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        variant.run()
        self.synchronize()
        peak = torch.cuda.max_memory_allocated(self.device)
        variant.after()
        return peak - base

    def _waits(self, variant: Variant) -> bool | str:
        """Whether torch makes the host wait for the GPU in the call."""
        variant.before()
        torch.cuda.set_sync_debug_mode("error")
        try:
            variant.run()
            waits = False
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                return one_line(error)
            waits = True
        finally:
            torch.cuda.set_sync_debug_mode("default")
            variant.after()
        return waits


def graph_replays(run: Callable[[], object], reset: Callable[[], object], results: list[Tensor]) -> str:
    """Whether a CUDA graph of `run` writes what the call writes, bit for bit: "equal", or what is wrong.

    Args:
        reset: puts the results back to what they were before a call.
    """
    try:
        reset()
        run()
        expected = [t.clone() for t in results]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        reset()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        return one_line(error)
    wrong = sum(not torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    return f"{wrong} of {len(results)} tensors differ" if wrong else "equal"


def one_line(error: BaseException) -> str:
    """An error in one line; of a long text the first line says what it is about."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]
