"""Sums of a few elements in one compiled call: maps with a few nonzeros a row, and adjoints of selections.

    out[r, c] = sum_q s_q sum_k w_k sum_p s_p source_k[i_p, j_q]

with p in the list of row r, q in that of column c and k over the sources (csrc/sum.h). Products and sums are
in float32 in this order, on a CPU and on a GPU alike. Bytes: every out once, every source as often as it is
listed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from ..maps import Identity, Map, Selection
from ..native import cpu, cuda
from ..native.calls import Call, tiles_of
from ..native.refusal import TYPES, Use, refusal
from .order import Maps

TILE_ROWS = 16
CUDA_TILE = (16, 256)


@dataclass(frozen=True)
class Lists:
    """For each row, or column, of an out the units of the sources that it is the sum of.

    Attributes:
        size: of the out. old: of the sources.
        starts: (size + 1,) int32: unit r has entries starts[r] .. starts[r + 1]; None: r is made of r.
        index, scale: int32 and float32, an entry each; scale None for ones.
    """

    size: int
    old: int
    starts: Tensor | None = None
    index: Tensor | None = None
    scale: Tensor | None = None


def forward(m: Map, device: torch.device | str = "cpu") -> Lists:
    """M x for an Identity or a Selection: lists of one, or of none for a zero."""
    return _of(m, device, adjoint=False)


def adjoint(m: Map, device: torch.device | str = "cpu") -> Lists:
    """M^T g for an Identity or a Selection: for each old unit the new ones that were made of it, in order."""
    return _of(m, device, adjoint=True)


def _of(m: Map, device: torch.device | str, adjoint: bool) -> Lists:
    if isinstance(m, Identity):
        return Lists(m.shape[0], m.shape[0])
    if not isinstance(m, Selection):
        raise ValueError(f"{m!r} is no selection")
    new, old = m.shape
    index = m.index.detach().cpu().long()
    if new and not -1 <= int(index.min()) <= int(index.max()) < old:
        raise ValueError(f"indices {int(index.min())} .. {int(index.max())} among {old} units")
    scale = None if m.scale is None else m.scale.detach().cpu().float()
    given = (index >= 0) if scale is None else (index >= 0) & (scale != 0)
    entry = given.nonzero().flatten()
    unit = index[entry]
    size, owner, other = (old, unit, entry) if adjoint else (new, entry, unit)
    order = torch.argsort(owner, stable=True)
    starts = torch.zeros(size + 1, dtype=torch.int64, device="cpu")
    starts[1:] = torch.bincount(owner, minlength=size).cumsum(0)
    by = None if scale is None or bool((scale[entry] == 1).all()) else scale[entry][order].to(device)
    return Lists(size, new if adjoint else old, starts.int().to(device), other[order].int().to(device), by)


@dataclass(frozen=True)
class Sum:
    """out = sum_k weights[k] * (rows x columns of sources[k]); 2-D views, the sources of one layout."""

    sources: Sequence[Tensor]
    weights: Sequence[float]
    out: Tensor
    rows: Lists
    columns: Lists


def uses(item: Sum) -> list[Use]:
    """What a sum reads and writes."""
    shape = item.rows.old, item.columns.old
    read = [Use(t, shape, False) for t in item.sources]
    return [*read, Use(item.out, (item.rows.size, item.columns.size), True)]


def lists(item: Sum) -> list[Tensor]:
    """The tensors of its sides."""
    sides = (item.rows, item.columns)
    return [t for side in sides for t in (side.starts, side.index, side.scale) if t is not None]


def why_not(items: Sequence[Sum]) -> str:
    """Why the compiled code cannot do these; empty when it can."""
    for item in items:
        if len(item.sources) != len(item.weights):
            return f"{len(item.weights)} weights for {len(item.sources)} sources"
        if len({(t.stride(), t.dtype) for t in item.sources}) > 1:
            return "sources of different strides or dtypes"
    return refusal([use for item in items for use in uses(item)], [t for item in items for t in lists(item)])


class Table(Call[Sum]):
    """Sums as one call. It keeps their tensors; they must not be resized or moved.

    Raises:
        ValueError: for sums that `why_not` refuses.
    """

    def __init__(self, items: Sequence[Sum]) -> None:
        super().__init__(items, why_not)

    def tabulate(self) -> tuple[list[list[int]], np.ndarray]:
        terms = [_terms(item) for item in self.items]
        flat = [t for some in terms for t in some]
        self._terms = torch.tensor(flat, dtype=torch.int64, device="cpu").to(self.device)
        first, words, tiles = 0, [], []
        for n, (item, some) in enumerate(zip(self.items, terms, strict=True)):
            rows, columns = _sides(item)
            tile = tile_of(self.device, columns[0].size)
            words.append(_words(item, self._terms.data_ptr() + 16 * first, len(some), tile))
            first += len(some)
            tiles.append(tiles_of(n, (rows[0].size, columns[0].size), tile))
        return words, np.concatenate(tiles)

    def run(self, words: int, tiles: int, count: int) -> None:
        if self.device.type == "cpu":
            cpu.extension.sum(words, tiles, count, cpu.team())
        else:
            cuda.sum_(words, tiles, count, self.device)


def tile_of(device: torch.device, width: int) -> tuple[int, int]:
    """Rows and columns of a tile; on the CPU it has whole rows."""
    return (TILE_ROWS, width) if device.type == "cpu" else CUDA_TILE


def _terms(item: Sum) -> list[list[int]]:
    """Term of csrc/sum.h for each source that counts."""
    pairs = zip(item.sources, item.weights, strict=True)
    return [[t.data_ptr(), int(np.float32(w).view(np.int32))] for t, w in pairs if w != 0]


def _sides(item: Sum) -> tuple[tuple[Lists, int, int], tuple[Lists, int, int]]:
    """(lists, source stride, out stride) of rows and columns; they change places for a transposed out."""
    strides = item.sources[0].stride() if item.sources else (0, 0)
    rows, columns = zip((item.rows, item.columns), strides, item.out.stride(), strict=True)
    turned = item.out.stride(0) == 1 and item.out.stride(1) != 1
    return (columns, rows) if turned else (rows, columns)


def _words(item: Sum, terms: int, count: int, tile: tuple[int, int]) -> list[int]:
    """The Sum of csrc/sum.h."""
    source = TYPES[item.sources[0].dtype] if item.sources else 0
    words = [item.out.data_ptr(), source, TYPES[item.out.dtype], terms, count]
    for (side, in_stride, out_stride), size in zip(_sides(item), tile, strict=True):
        addresses = (0 if t is None else t.data_ptr() for t in (side.starts, side.index, side.scale))
        words += [side.size, side.old, in_stride, out_stride, *addresses, size]
    return words


def pull_stack(grad: Tensor, depth: Map, rows: Maps, columns: Maps) -> Tensor | None:
    """d<grad, Y>/dW for Y[l] = U (sum_j D[l, j] W[j]) V^T with selections for U, V and D.

    Args:
        grad: (L2, o2, i2).

    Returns:
        (L1, o1, i1) float32, or None where the compiled code cannot do it.
    """
    if not (_selects(depth) and _selects(rows) and _selects(columns)):
        return None
    shape = depth.shape[1], rows.shape[1], columns.shape[1]
    out = torch.empty(shape, dtype=torch.float32, device=grad.device)
    layers = adjoint(depth)
    sides = adjoint(rows, grad.device), adjoint(columns, grad.device)
    items = [
        Sum([grad[layer] for layer in at], weights, to, *sides)
        for to, (at, weights) in zip(out, _entries(layers), strict=True)
    ]
    if why_not(items):
        return None
    Table(items)()
    return out


def _selects(m: Maps) -> TypeGuard[Identity | Selection]:
    return isinstance(m, Identity | Selection)


def _entries(side: Lists) -> list[tuple[list[int], list[float]]]:
    """The lists as lists: units and scales."""
    if side.starts is None or side.index is None:
        return [([n], [1.0]) for n in range(side.size)]
    bounds, index = side.starts.tolist(), side.index.tolist()
    scale = [1.0] * len(index) if side.scale is None else side.scale.tolist()
    return [(index[a:b], scale[a:b]) for a, b in itertools.pairwise(bounds)]
