"""Which tensors the compiled code (csrc/) can take together: it gets addresses, and sees no more of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import cpu, cuda

TYPES = cpu.TYPES  # as in csrc/select.h


@dataclass(frozen=True)
class Use:
    """A tensor, the shape that the indices take it to have, and whether it is written."""

    tensor: Tensor
    shape: tuple[int, int]
    written: bool


def refusal(used: Sequence[Use], lists: Sequence[Tensor]) -> str:
    """Why the compiled code cannot take these tensors together; empty when it can.

    Args:
        lists: indices and scales.
    """
    device = used[0].tensor.device
    if device.type not in ("cpu", "cuda"):
        return f"tensors on {device.type}"
    if why := cpu.why_not() if device.type == "cpu" else cuda.why_not():
        return why
    for use in used:
        t = use.tensor
        if type(t) not in (Tensor, nn.Parameter) or t.layout != torch.strided:
            return f"a {type(t).__name__} of layout {t.layout}"
        if t.shape != use.shape:
            return f"a tensor {tuple(t.shape)} where the indices say {use.shape}"
        if t.device != device:
            return f"tensors on {device} and {t.device}"
        if t.dtype not in TYPES:
            return f"a dtype {t.dtype}"
        if t.numel() and not t.data_ptr():
            return f"a tensor {use.shape} without memory"
        if t.data_ptr() % t.itemsize:
            return f"an address {t.data_ptr():#x} that is not a multiple of {t.itemsize}"
    if any(t.device != device for t in lists):
        return "indices or scales on another device"
    return overlap([(use.tensor, use.written) for use in used])


def _bytes(t: Tensor) -> tuple[int, int]:
    """The addresses from the first to past the last byte."""
    reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (reach + 1) * t.itemsize


def _apart(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices whose bytes interleave share none: columns of one array, each with its own."""
    if a.stride() != b.stride() or a.dtype != b.dtype:
        return False
    inner = 0 if a.stride(0) < a.stride(1) else 1
    pitch = a.stride(1 - inner) * a.itemsize
    if pitch == 0:  # of a single row
        return False
    distance = abs(a.data_ptr() - b.data_ptr()) % pitch
    first, second = (a, b) if (b.data_ptr() - a.data_ptr()) % pitch == distance else (b, a)
    widths = [((t.shape[inner] - 1) * t.stride(inner) + 1) * t.itemsize for t in (first, second)]
    return widths[0] <= distance and distance + widths[1] <= pitch


def overlap(used: Sequence[tuple[Tensor, bool]]) -> str:
    """Which matrices, each written or not, share memory that they must not; empty for none."""
    for t, written in used:
        strides = sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n > 1)
        if written and t.numel() and strides and (
            strides[0][0] == 0 or (len(strides) > 1 and strides[1][0] < strides[0][0] * strides[0][1])
        ):  # fmt: skip
            return f"an out whose elements share memory (strides {t.stride()})"
    spans = sorted(((*_bytes(t), n) for n, (t, _) in enumerate(used) if t.numel()))
    live: list[tuple[int, int]] = []  # (end, number) of those that may reach into the next ones
    for start, end, n in spans:
        live = [(e, m) for e, m in live if e > start]
        for _, m in live:
            (a, a_out), (b, b_out) = used[m], used[n]
            if (a_out or b_out) and not _apart(a, b):
                return "two outs that overlap" if a_out and b_out else "a source that overlaps an out"
        live.append((end, n))
    return ""
