"""total: the partial sums of a launch added up in a fixed order, into the gradients of the factors.

    out[i] += sum_s sum_h sums[s, i * group + h]

Deterministic, and no atomics. Bytes: the partial sums once, out twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import Launch
from .table import Slots, tiles, upload


@triton.jit
def total_kernel(pointers, table, work, PARTS: tl.constexpr, SIZE: tl.constexpr):
    tile = work + tl.program_id(0).to(tl.int64) * 4
    item = table + tl.load(tile).to(tl.int64) * 7
    out = tl.load(pointers + tl.load(item)).to(tl.pointer_type(tl.float32)) + tl.load(item + 1)
    sums = tl.load(pointers + tl.load(item + 2)).to(tl.pointer_type(tl.float32)) + tl.load(item + 3)
    n = tl.load(item + 4)
    parts = tl.load(item + 5)
    group = tl.load(item + 6)
    i = tl.load(tile + 2) + tl.arange(0, SIZE)
    acc = tl.zeros((PARTS, SIZE), tl.float32)
    for s0 in range(0, parts, PARTS):
        s = s0 + tl.arange(0, PARTS).to(tl.int64)
        mask = (s < parts)[:, None] & (i < n)[None, :]
        at = sums + s[:, None] * n * group + i.to(tl.int64)[None, :] * group
        for h in range(0, group):
            acc += tl.load(at + h, mask=mask, other=0.0)
    old = tl.load(out + i, mask=i < n, other=0.0)
    tl.store(out + i, old + tl.sum(acc, axis=0), mask=i < n)


class Total(NamedTuple):
    """out (n,) += the sum over `parts` of sums (parts, n * group), float32; offsets in elements."""

    out_slot: int
    out_offset: int
    sums_slot: int
    sums_offset: int
    n: int
    parts: int
    group: int = 1


class TotalLaunch(Launch):
    """Every total of a plan, in one launch. No two of them may have the same out."""

    PARTS, SIZE = 32, 64

    def __init__(self, totals: Sequence[Total], slots: Slots) -> None:
        self.totals = totals
        work = tiles([(1, t.n) for t in totals], 1, self.SIZE)
        tables = upload([list(t) for t in totals], slots.device), upload(work, slots.device, torch.int32)
        options: dict[str, object] = {"PARTS": self.PARTS, "SIZE": self.SIZE, "num_warps": 4}
        super().__init__(total_kernel, tables, options)
