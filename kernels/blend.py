"""blend: contract a short axis (layers, heads; up to about 128 long), many families at once.

With rs, cs a scale of rows and columns (absent: ones), element by element over (R, C):

    forward   y[l] = rs cs sum_j D[l, j] x[j]
    adjoint   dx[j] (+)= rs cs sum_l D[l, j] g[l]      dD[l, j] = <g[l], rs cs x[j]>
              drs[r] = sum_c cs t     dcs[c] = sum_r rs t     with t = sum_j x[j] sum_l D[l, j] g[l]

Bytes: forward x and y once, where the nearest cache keeps a tile of every x: it is loaded ceil(L2 / LAYERS)
times; adjoint see blend_adjoint.py. FLOPs 2 L1 L2 an element; 4 L1 L2 in the adjoint. Sums over elements (dD,
drs, dcs) are written as one partial sum a program, and added up in order by `total`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .blend_adjoint import adjoint_kernel
from .blend_table import addresses, scale, sizes
from .configs import BlendConfig, blend_config
from .expand import TYPES
from .launch import Launch
from .table import Matrix, Slots, tiles

MAX_PROGRAMS = 2048  # of the adjoint, on one blend


@triton.jit
def forward_kernel(
    pointers,
    table,
    lists,
    work,
    X_TYPE: tl.constexpr,
    Y_TYPE: tl.constexpr,
    X_ALONG_C: tl.constexpr,
    ALIGN: tl.constexpr,
    LAYERS: tl.constexpr,
    UNROLL: tl.constexpr,  # layers of x that a thread waits for at once
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile = work + tl.program_id(0).to(tl.int64) * 4
    item = table + tl.load(tile).to(tl.int64) * 30
    r0 = tl.multiple_of(tl.load(tile + 1), ROWS)
    c0 = tl.multiple_of(tl.load(tile + 2), COLUMNS)
    L2, L1, R, C, x_row, x_column, y_row = sizes(item, ALIGN)
    e = tl.arange(0, ROWS * COLUMNS)
    r = r0 + e // COLUMNS
    c = c0 + e % COLUMNS
    inside = (r < R) & (c < C)
    if X_ALONG_C:
        x_offset = r.to(tl.int64) * x_row + c
    else:
        x_offset = r.to(tl.int64) * x_row + c.to(tl.int64) * x_column
    y_offset = r.to(tl.int64) * y_row + c
    factor = scale(pointers, item + 14, tl.load(item + 16).to(tl.int32), r, inside)
    factor *= scale(pointers, item + 17, tl.load(item + 19).to(tl.int32), c, inside)
    depth = tl.load(pointers + tl.load(item)).to(tl.pointer_type(tl.float32)) + tl.load(item + 1)
    d_row = tl.load(item + 2)
    d_column = tl.load(item + 3)
    x_list = lists + 2 * tl.load(item + 8)
    y_list = lists + 2 * tl.load(item + 11)
    for l0 in range(0, L2, LAYERS):  # x is read again for each, from the nearest cache
        layer = l0 + tl.arange(0, LAYERS)
        acc = tl.zeros((LAYERS, ROWS * COLUMNS), tl.float32)
        for j0 in range(0, L1, UNROLL):
            xs = ()
            for k in tl.static_range(UNROLL):  # all on their way before the first is used
                there = j0 + k < L1
                x = addresses(pointers, x_list, j0 + k, there, X_TYPE)[0]
                x_ptrs = (x + x_offset)[None, :]
                if ALIGN > 1:
                    x_ptrs = tl.multiple_of(x_ptrs, (1, 16))
                xs += (tl.load(x_ptrs, mask=inside[None, :] & there, other=0.0),)  # type: ignore[assignment]
            for k in tl.static_range(UNROLL):
                mask = (layer < L2) & (j0 + k < L1)
                d = tl.load(depth + layer * d_row + (j0 + k) * d_column, mask=mask, other=0.0)
                acc += d[:, None] * xs[k].to(tl.float32)
        acc = acc * factor[None, :]
        y = addresses(pointers, y_list, layer, layer < L2, Y_TYPE)[0]
        y_ptrs = y[:, None] + y_offset[None, :]
        if ALIGN > 1:
            y_ptrs = tl.multiple_of(y_ptrs, (1, 16))
        tl.store(y_ptrs, acc.to(Y_TYPE), mask=(layer < L2)[:, None] & inside[None, :])


class Scale(NamedTuple):
    """A float32 vector in a slot; element i of the axis takes scale[i // group]."""

    slot: int
    offset: int
    group: int = 1


NONE = Scale(-1, 0)


class BlendKind(NamedTuple):
    """What the compiler has to know of a launch."""

    x: torch.dtype
    y: torch.dtype
    dx: torch.dtype
    along_c: bool
    align: int


@dataclass(frozen=True)
class Blend:
    """ys[l] (R, C) = rs cs sum_j D[l, j] xs[j]; with `adjoint`, ys are gradients and the rest flows back.

    Attributes:
        depth: D as a Matrix (L2, L1) of float32.
        xs, ys: L1 and L2 matrices (R, C) of one dtype and one pair of strides each; ys run along C.
        dxs: L1 matrices for the adjoint, or none; `add` to what they hold.
        sums: (slot, offset) of the partial sums of dD, drs and dcs; a slot of -1 where not wanted.
    """

    depth: Matrix
    xs: Sequence[Matrix]
    ys: Sequence[Matrix]
    rows: Scale = NONE
    columns: Scale = NONE
    dxs: Sequence[Matrix] = ()
    add: bool = False
    sums: tuple[tuple[int, int], ...] = ((-1, 0),) * 3

    @property
    def shape(self) -> tuple[int, int]:
        return self.ys[0].shape

    def flops(self, adjoint: bool) -> int:
        """Of one blend; in the adjoint of one where dx or dD is wanted alone, of two for both."""
        (rows, columns), (l2, l1) = self.shape, self.depth.shape
        d, *scales = (slot >= 0 for slot, _ in self.sums)
        passes = d + (bool(self.dxs) or any(scales)) if adjoint else 1
        return passes * 2 * l2 * l1 * rows * columns

    @property
    def kind(self) -> BlendKind:
        """Blends of one kind share a launch."""
        every = [*self.xs, *self.ys, *self.dxs]
        along_c = all(x.runs(1) for x in self.xs)
        n = 16 // min(m.dtype.itemsize for m in every)
        checked = every if along_c else [*self.ys, *self.dxs]
        whole = along_c and all(m.aligned(1, n) for m in checked)
        dx = self.dxs[0].dtype if self.dxs else torch.float32
        return BlendKind(self.xs[0].dtype, self.ys[0].dtype, dx, along_c, n if whole else 1)


def adjoint_span(shape: tuple[int, int], config: BlendConfig) -> int:
    """Rows that one program of the adjoint works through: more in large blends, for fewer partial sums."""
    across = -(-shape[1] // config.adjoint_columns)
    return max(config.adjoint_rows, -(-shape[0] * across // MAX_PROGRAMS))


def sum_counts(shape: tuple[int, int], config: BlendConfig) -> tuple[int, int, int]:
    """How many partial sums the adjoint writes of dD, drs and dcs: programs, column tiles, spans of rows."""
    across, down = -(-shape[1] // config.adjoint_columns), -(-shape[0] // adjoint_span(shape, config))
    return across * down, across, down


def forward_options(kind: BlendKind, config: BlendConfig) -> dict[str, Any]:
    """The forward's constants and Triton's options."""
    # a thread loads as many columns of x as it stores of y, lest they change hands
    align = min(kind.align, 16 // max(kind.x.itemsize, kind.y.itemsize))
    return {
        "X_TYPE": TYPES[kind.x],
        "Y_TYPE": TYPES[kind.y],
        "X_ALONG_C": kind.along_c,
        "ALIGN": align,
        "LAYERS": config.layers,
        "UNROLL": config.unroll,
        "ROWS": config.rows,
        "COLUMNS": config.columns * max(1, align // 4),
        "num_warps": config.warps,
    }


def adjoint_options(
    kind: BlendKind, config: BlendConfig, precision: str, layers: tuple[int, int], scaled: bool, add: bool
) -> dict[str, Any]:
    """The adjoint's, for at most `layers` (L2, L1); whether any blend has scales, and any adds to dx."""
    exact = precision == "ieee" or kind.align == 1  # tensor cores are for aligned loads: the others spill
    g_layers, x_layers = (16 if n <= 16 else 32 for n in layers)
    if scaled or kind.align == 1 or kind.x != kind.y:  # they take registers of their own
        x_layers = 16
    return {
        "X_TYPE": TYPES[kind.x],
        "G_TYPE": TYPES[kind.y],
        "DX_TYPE": TYPES[kind.dx],
        "X_ALONG_C": kind.along_c,
        "ALIGN": kind.align,
        "PRECISION": "ieee" if exact else "tf32x3",
        "SCALED": scaled,
        "ADD": add or layers[0] > g_layers,
        "G_LAYERS": g_layers,
        "X_LAYERS": x_layers,
        "COLUMNS": config.adjoint_columns,
        "STAGES": 1 if exact or scaled else 3,  # where registers are left for it
        "num_warps": config.adjoint_warps,
        # left alone, the assembler spills to fit one more block
        "maxnreg": (232 if kind.align == 1 else 184 if x_layers == 32 else 168) if exact else None,
    }


class BlendLaunch(Launch):
    """Every blend of one kind, in one launch; `precision` is of the adjoint's products (blend_adjoint.py)."""

    def __init__(self, blends: Sequence[Blend], slots: Slots, adjoint: bool, precision: str = "ieee") -> None:
        kinds = {b.kind for b in blends}
        assert len(kinds) == 1, kinds
        self.kind = kinds.pop()
        self.flops = sum(b.flops(adjoint) for b in blends)
        config = blend_config(self.kind.align, slots.device)
        rows: list[list[int]] = []
        lists: list[list[int]] = []
        spans: list[int] = []

        def listed(matrices: Sequence[Matrix]) -> int:
            lists.extend([m.slot, m.offset] for m in matrices)
            return len(lists) - len(matrices)

        for b in blends:
            d, x, y = b.depth, b.xs[0], b.ys[0]
            row = [d.slot, d.offset, *d.stride, *d.shape, *b.shape, listed(b.xs), *x.stride]
            row += [listed(b.ys), *y.stride, *b.rows, *b.columns]
            row += [listed(b.dxs), b.dxs[0].stride[0], b.add] if b.dxs else [-1, 0, 0]
            spans.append(adjoint_span(b.shape, config) if adjoint else config.rows)
            rows.append([*row, *(n for pair in b.sums for n in pair), spans[-1]])
        if adjoint:
            layers = max(b.depth.shape[0] for b in blends), max(b.depth.shape[1] for b in blends)
            scaled = any(b.rows != NONE or b.columns != NONE for b in blends)
            options = adjoint_options(
                self.kind, config, precision, layers, scaled, any(b.add for b in blends)
            )
        else:
            options = forward_options(self.kind, config)
        work = tiles([b.shape for b in blends], spans, options["COLUMNS"])
        kernel = adjoint_kernel if adjoint else forward_kernel
        super().__init__(kernel, slots.device, (rows, lists), work, options)
