"""What only a GPU has to be asked: does the host wait, how long is it busy, is a CUDA graph the same."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ligo_fast.bench.measure import one_line
from ligo_fast.bench.timing import Stopwatch, Variant


def facts(watch: Stopwatch, variant: Variant) -> dict[str, Any]:
    """Host milliseconds until the call returns, kernel launches, extra memory, whether the host waits."""
    if not watch.on_gpu:
        return {}
    host = []
    for _ in range(5):
        variant.before()
        watch.synchronize()
        start = perf_counter()
        variant.run()
        host.append(perf_counter() - start)
        variant.after()
    return {
        "host_ms": 1e3 * median(host),
        "launches": watch.launches(variant),
        "extra_bytes": watch.extra_bytes(variant),
        "host_sync": _waits(variant),
    }


def _waits(variant: Variant) -> bool | str:
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


def graph_replays(
    run: Callable[[], object],
    reset: Callable[[], object],
    results: list[Tensor],
    between: Callable[[], object] = lambda: None,
) -> str:
    """Whether a CUDA graph of `run` writes what the call writes, bit for bit: "equal", or what is wrong.

    Args:
        reset: puts the results back to what they were before a call.
        between: calls that are made after the capture and before the replay, and must not matter to it.
    """
    try:
        reset()
        run()
        expected = [t.clone() for t in results]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        between()
        kept = _free_memory_written_over()
        reset()
        graph.replay()
        torch.cuda.synchronize()
        del kept
    except (RuntimeError, ValueError) as error:
        return one_line(error)
    wrong = sum(not torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    return f"{wrong} of {len(results)} tensors differ" if wrong else "equal"


def _free_memory_written_over() -> list[Tensor]:
    """Tensors where small ones were freed; the memory of large ones goes back to the driver.

    So a graph that reads what was freed since its capture shows.
    """
    torch.cuda.empty_cache()
    ones = [
        torch.full((1 << n,), 0xFF, dtype=torch.uint8, device="cuda") for n in range(9, 21) for _ in range(8)
    ]
    torch.cuda.synchronize()
    return ones
