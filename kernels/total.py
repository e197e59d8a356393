"""total: the partial sums of a launch added up in a fixed order, into the gradients of the factors.

    out[i] += sum_s sum_h sums[s, i * group + h]

Deterministic, and no atomics: each out is added up by one program, whose threads take the parts in turns and
are then added up as a tree. Bytes: the partial sums once, out twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .launch import Launch
from .table import Slots, tiles

LONG, WIDE = (256, 8), (8, 256)  # parts read at once, and outs of a program
LONGEST = 1 << 16  # outs of such a total; more of them are programs enough
OPTIONS: dict[str, Any] = {
    "LONG_PARTS": LONG[0],
    "LONG_SIZE": LONG[1],
    "WIDE_PARTS": WIDE[0],
    "WIDE_SIZE": WIDE[1],
    "num_warps": 4,
}


@triton.jit
def total_of(out, sums, i, n, parts, group, PARTS: tl.constexpr):
    """out[i] += the sum over the parts, of which PARTS are read at once."""
    acc = tl.zeros((PARTS, i.shape[0]), tl.float32)
    for s0 in range(0, parts, PARTS):
        s = s0 + tl.arange(0, PARTS).to(tl.int64)
        mask = (s < parts)[:, None] & (i < n)[None, :]
        at = sums + s[:, None] * n * group + i.to(tl.int64)[None, :] * group
        for h in range(0, group):
            acc += tl.load(at + h, mask=mask, other=0.0)
    old = tl.load(out + i, mask=i < n, other=0.0)
    tl.store(out + i, old + tl.sum(acc, axis=0), mask=i < n)


@triton.jit
def total_kernel(
    pointers,
    table,
    work,
    LONG_PARTS: tl.constexpr,
    LONG_SIZE: tl.constexpr,
    WIDE_PARTS: tl.constexpr,
    WIDE_SIZE: tl.constexpr,
):
    tile = work + tl.program_id(0).to(tl.int64) * 4
    item = table + tl.load(tile).to(tl.int64) * 8
    out = tl.load(pointers + tl.load(item)).to(tl.pointer_type(tl.float32)) + tl.load(item + 1)
    sums = tl.load(pointers + tl.load(item + 2)).to(tl.pointer_type(tl.float32)) + tl.load(item + 3)
    n = tl.load(item + 4)
    parts = tl.load(item + 5)
    group = tl.load(item + 6)
    first = tl.load(tile + 1)
    if tl.load(item + 7) != 0:
        total_of(out, sums, first + tl.arange(0, LONG_SIZE), n, parts, group, LONG_PARTS)
    else:
        total_of(out, sums, first + tl.arange(0, WIDE_SIZE), n, parts, group, WIDE_PARTS)


class Total(NamedTuple):
    """out (n,) += the sum over `parts` of sums (parts, n * group), float32; offsets in elements."""

    out_slot: int
    out_offset: int
    sums_slot: int
    sums_offset: int
    n: int
    parts: int
    group: int = 1

    @property
    def is_long(self) -> bool:
        """Whether it is many parts of few outs: a program then takes few outs, 32 bytes of every part."""
        return self.parts > WIDE[0] and self.n <= LONGEST


class TotalLaunch(Launch):
    """Every total of a plan, in one launch. No two of them may have the same out."""

    def __init__(self, totals: Sequence[Total], slots: Slots) -> None:
        self.totals = totals
        sizes = [LONG[1] if t.is_long else WIDE[1] for t in totals]
        work = tiles([(t.n, 1) for t in totals], sizes, 1)
        rows = [[*t, t.is_long] for t in totals]
        super().__init__(total_kernel, slots.device, (rows,), work, OPTIONS)
