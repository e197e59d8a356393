"""Selection of many matrices in one compiled call: out[r, c] = s_l * s_r * s_c * in[i(r), j(c)], with a cast.

Items are checked and put in a table once (csrc/select.h describes it); a call hands over the table's address.
On the CPU the code is `ligo_fast._cpu`, on CUDA tensors `ligo_fast._cuda`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import cpu, cuda
from .calls import Call, tiles_of
from .refusal import TYPES, Use, refusal

LONG = 8  # neighbours in the source that are worth a copy of their own
ZERO, SCATTERED = -1, -2  # runs, as in csrc/select.h
TILE_VALUES = {
    "cpu": 1 << 15,
    "cuda": 1 << 12,
}  # a core's cache holds it; a block of threads does it in two goes
SQUARE = 64  # side of a tile that is transposed


@dataclass(frozen=True)
class Take:
    """Where the rows, or the columns, of an out come from.

    Attributes:
        size: of the out. old: of the source.
        index: (size,) int32, -1 for zeros; or None for the units start, start + 1, ...
        scale: (size,) float32, or None for ones.
        runs: (n, 3) int32 on the CPU: first, count and source of every Run.
    """

    size: int
    old: int
    start: int = 0
    index: Tensor | None = None
    scale: Tensor | None = None
    runs: Tensor | None = None


def take(
    index: Tensor | range, old: int, scale: Tensor | None = None, square: bool = False, device: str = "cpu"
) -> Take:
    """Units `index` of `old` ones, each times its scale; of -1 or with a scale of 0: zeros.

    Args:
        index: (n,) int32 or int64, or a range with step 1.
        scale: (n,) floating point. square: the squares of the scales, as second moments grow.

    Raises:
        ValueError: for an index that is not among -1 .. old - 1, or sizes and dtypes that do not fit.
    """
    if isinstance(index, range):
        if index.step != 1:
            raise ValueError(f"a range with step {index.step}")
        index = torch.arange(index.start, max(index.start, index.stop), device="cpu")
    if index.dim() != 1 or index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"an index of {tuple(index.shape)} {index.dtype}, not (n,) int32 or int64")
    unit = index.detach().cpu().long()
    by = None
    if scale is not None:
        if scale.shape != index.shape or not scale.is_floating_point():
            raise ValueError(f"scales {tuple(scale.shape)} {scale.dtype} for {tuple(index.shape)} units")
        by = scale.detach().cpu().float()
        by = by * by if square else by
        unit = torch.where(by == 0, -1, unit)
        by = None if bool(((by == 1) | (unit < 0)).all()) else by
    n = unit.numel()
    if n and not -1 <= int(unit.min()) <= int(unit.max()) < old:
        raise ValueError(f"indices {int(unit.min())} .. {int(unit.max())} among {old} units")
    if max(n, old) >= 1 << 31:
        raise ValueError(f"{max(n, old)} units do not fit an int32")
    start = int(unit[0]) if n else 0
    by = None if by is None else by.to(device).contiguous()
    if start >= 0 and torch.equal(unit, torch.arange(start, start + n, device="cpu")):
        return Take(n, old, start, None, by)
    return Take(n, old, 0, unit.int().to(device), by, torch.from_numpy(_runs(unit.numpy())))


def _runs(index: np.ndarray) -> np.ndarray:
    """(n, 3) int32: first, count, source of pieces whose sources are neighbours; short ones are SCATTERED."""
    zero = index < 0
    same = np.where(zero[1:] | zero[:-1], zero[1:] & zero[:-1], np.diff(index) == 1)
    first = np.concatenate([[0], np.flatnonzero(~same) + 1])
    count = np.diff(np.append(first, len(index)))
    source = np.where(count >= LONG, np.where(zero[first], ZERO, index[first]), SCATTERED)
    # neighbouring scattered ones become one
    head = np.concatenate([[True], (source[1:] != SCATTERED) | (source[:-1] != SCATTERED)])
    first, source = first[head], source[head]
    return np.stack([first, np.diff(np.append(first, len(index))), source], 1).astype(np.int32)


@dataclass(frozen=True)
class Item:
    """out = scale * (rows x columns of source, scaled); 2-D views of any strides."""

    source: Tensor
    out: Tensor
    rows: Take
    columns: Take
    scale: float = 1.0


def why_not(items: Sequence[Item]) -> str:
    """Why the compiled code cannot do these; empty when it can."""
    return refusal([use for item in items for use in uses(item)], [t for item in items for t in _lists(item)])


def uses(item: Item) -> list[Use]:
    """What an item reads and writes."""
    return [
        Use(item.source, (item.rows.old, item.columns.old), False),
        Use(item.out, (item.rows.size, item.columns.size), True),
    ]


def _lists(item: Item) -> list[Tensor]:
    return [t for side in (item.rows, item.columns) for t in (side.index, side.scale) if t is not None]


class Table(Call[Item]):
    """Items as one call. It keeps their tensors; they must not be resized or moved.

    Raises:
        ValueError: for items that `why_not` refuses.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items, why_not)
        self._stream = sum(item.out.numel() * item.out.itemsize for item in self.items) >= cpu.STREAM_BYTES

    def tabulate(self) -> tuple[list[list[int]], np.ndarray]:
        words, tiles = [], []
        for n, item in enumerate(self.items):
            words.append(_words(item, tile := _tile(item)))
            tiles.append(tiles_of(n, item.out.t().shape if _turned(item) else item.out.shape, tile))
        work = np.concatenate(tiles)
        # layers made of the same source go side by side: it is read from memory once
        group: dict[int, int] = {}
        same = np.array([group.setdefault(item.source.data_ptr(), n) for n, item in enumerate(self.items)])
        return words, work[np.lexsort((work[:, 2], work[:, 0], work[:, 1], same[work[:, 0]]))]

    def run(self, words: int, tiles: int, count: int) -> None:
        if self.device.type == "cpu":
            cpu.extension.select(words, tiles, count, self._stream, cpu.team())
        else:
            cuda.select(words, tiles, count, self.device)


def _turned(item: Item) -> bool:
    """Whether rows and columns change places, so that columns are neighbours in the out."""
    return item.out.stride(0) == 1 and (item.out.stride(1) != 1 or item.out.shape[1] == 1)


def _sides(item: Item) -> tuple[tuple[Take, int, int], tuple[Take, int, int]]:
    """(take, source stride, out stride) of rows and columns, as the table has them."""
    strides = zip((item.rows, item.columns), item.source.stride(), item.out.stride(), strict=True)
    a, b = strides
    return (b, a) if _turned(item) else (a, b)


def _tile(item: Item) -> tuple[int, int]:
    """Rows and columns of a tile: whole rows of a copy, squares of a transpose."""
    (rows, *_), (columns, in_stride, _) = _sides(item)
    values = TILE_VALUES[item.out.device.type]
    if in_stride != 1 and columns.old > 1:
        return SQUARE, SQUARE
    width = min(columns.size, values)
    return max(1, min(rows.size, values // width)), width


def _words(item: Item, tile: tuple[int, int]) -> list[int]:
    """The Item of csrc/select.h."""
    bits = int(np.float32(item.scale).view(np.int32))
    types = TYPES[item.source.dtype], TYPES[item.out.dtype]
    words = [item.source.data_ptr(), item.out.data_ptr(), *types, bits, int(_turned(item))]
    for (side, in_stride, out_stride), size in zip(_sides(item), tile, strict=True):
        index, scale, runs = (0 if t is None else t.data_ptr() for t in (side.index, side.scale, side.runs))
        count = 0 if side.runs is None else len(side.runs)
        words += [side.size, in_stride, out_stride, index, side.start, scale, runs, count, size]
    return words


def select(items: Sequence[Item]) -> None:
    """Write every item's out, in one call.

    Raises:
        ValueError: for items that `why_not` refuses; nothing was written.
    """
    Table(items)()
