"""Launches into a CUDA graph: what its replays read must stay as it was, whatever is called in between.

So each captured call has an address list of its own: a node of the graph copies it from pinned memory to
memory of the graph, before the launches that read it. Not every release of torch can pin memory during a
capture; calls outside of captures see to it that there is some. It is kept for good, as are the tables: no
graph tells when it is gone.
"""

from __future__ import annotations

from array import array
from contextlib import nullcontext

import torch
from torch import Tensor

from ..errors import GrowthError

LISTS = 1 << 17  # addresses that a piece of pinned memory holds: 1 MB

_pinned: list[Tensor] = []  # pieces; the last one has room from `_used` on
_used = 0
_kept: dict[int, object] = {}


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is captured on the device's current stream; the device must be the current one."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def check_not_capturing(device: torch.device) -> None:
    """Before tables are made: their numbers would come to the device only with a replay.

    Raises:
        GrowthError: while a CUDA graph is captured.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if is_capturing(device):
            raise GrowthError(
                "the first call on tensors that lie like these makes tables and cannot be captured in a CUDA "
                "graph: call once before the capture"
            )


def prepare(device: torch.device) -> None:
    """Have pinned memory for the captures to come; not to be called during one."""
    global _used
    if device.type != "cuda" or (_pinned and _used <= LISTS // 2):
        return
    _pinned.append(torch.empty(LISTS, dtype=torch.int64, device="cpu", pin_memory=True))
    _used = 0


def upload(addresses: array[int], device: torch.device) -> Tensor:
    """A list of addresses in the graph that is captured, for it alone.

    Raises:
        GrowthError: when there is no pinned memory left for it.
    """
    global _used
    n = len(addresses)
    if not _pinned or _used + n > LISTS:
        raise GrowthError(
            f"no pinned memory is left for the {n} addresses of a call in a CUDA graph, there was room for "
            f"{LISTS}: capture fewer calls at a time, with one outside of captures in between"
        )
    host = _pinned[-1][_used : _used + n]
    _used += n
    host.copy_(torch.frombuffer(addresses, dtype=torch.int64))
    return torch.empty(n, dtype=torch.int64, device=device).copy_(host, non_blocking=True)


def keep(*things: object) -> None:
    """Keep what a captured graph reads for good."""
    _kept.update((id(thing), thing) for thing in things)
