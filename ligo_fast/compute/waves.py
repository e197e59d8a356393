"""What is launched together: items of some families that share a workspace, in stages one after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..kernels.blend import Blend
from ..kernels.configs import BlendConfig
from ..kernels.expand import Product
from ..kernels.table import Matrix

# Long sums are split until a launch has about so many programs of equal length: four rounds on a large GPU,
# and the last is short. But none is shorter than SHORTEST, as every part costs a partial sum.
TARGET_PROGRAMS, SHORTEST = 528, 512


@dataclass
class Stage:
    """Items that may run at the same time."""

    products: list[Product] = field(default_factory=list)
    blends: list[Blend] = field(default_factory=list)


ROUNDING = -1
ADJOINT = 3  # blends from this stage on are adjoints, when a wave is one


class Wave:
    """Items of some families that share one workspace, stage by stage; of the forward or of the adjoint.

    Args:
        workspace: its slot; dtype: of the arrays in it, and of factors and gradients that only products read.
        tile: the height and width of a product's tiles, for splitting long sums.
    """

    def __init__(
        self, workspace: int, dtype: torch.dtype, config: BlendConfig, tile: int, adjoint: bool
    ) -> None:
        self.workspace, self.dtype, self.config, self.tile = workspace, dtype, config, tile
        self.is_adjoint = adjoint
        self.used = 0  # bytes, with those of
        self.shared = 0  # copies of factors, which other families of the wave may read too
        self.stages: dict[int, Stage] = defaultdict(Stage)
        self.sums: dict[int, int] = {}  # slot of a factor's partial sums -> how many there are
        self.segments: dict[Any, list[tuple[Matrix, Matrix]]] = defaultdict(list)
        self.copies: dict[Matrix, Matrix] = {}  # of factors, in dtype
        self.arrays: dict[tuple[int, str], list[Matrix]] = {}  # of each family by number, in the workspace
        self.again: dict[int, Stage] = defaultdict(Stage)  # before `stages`: what made those of another wave

    def follow(self, before: Wave) -> None:
        """Leave what `before` has in the workspace where it is, to be found there or made `again`."""
        self.used, self.shared = before.used, before.shared
        self.copies, self.arrays = dict(before.copies), before.arrays
        if self.copies:
            self.again[ROUNDING] = before.stages[ROUNDING]

    def empty(self, rows: int, columns: int, dtype: torch.dtype | None = None) -> Matrix:
        """Room for a matrix in the workspace, in its dtype unless another is given."""
        dtype = dtype or self.dtype
        start = self.used
        self.used += -(-rows * columns * dtype.itemsize // 256) * 256
        return Matrix(self.workspace, start // dtype.itemsize, (rows, columns), (columns, 1), dtype)

    def rounded(self, factor: Matrix, one: Matrix) -> Matrix:
        """A float32 factor in the wave's dtype, made before all else: a blend of one layer by D = `one`."""
        if factor not in self.copies:
            rows = factor if factor.runs(1) else factor.t()
            before = self.used
            copy = self.empty(*rows.shape)
            self.shared += self.used - before
            self.stages[ROUNDING].blends.append(Blend(one, [rows], [copy]))
            self.copies[factor] = copy if factor.runs(1) else copy.t()
        return self.copies[factor]

    def sum_of(self, sums: int, count: int, n: int) -> tuple[int, int]:
        """Room for `count` partial sums of n numbers in the slot `sums`."""
        start = self.sums.get(sums, 0)
        self.sums[sums] = start + count
        return sums, start * n


def factor_gradients(wave: Wave) -> list[Product]:
    """dC = sum of g x^T over all that C was applied to, split into partial sums of about equal length."""
    products = []
    work: dict[Any, int] = defaultdict(int)  # of a kind, which is a launch: lengths of the sums of all tiles
    for (_, shape, kind), segments in wave.segments.items():
        work[kind] += _tiles(wave, shape) * _length(segments)
    for (slot, shape, kind), segments in wave.segments.items():
        longest = max(SHORTEST, -(-work[kind] // TARGET_PROGRAMS))
        for part in _split(segments, longest):
            _, offset = wave.sum_of(slot, 1, shape[0] * shape[1])
            products.append(Product(Matrix(slot, offset, shape, (shape[1], 1), torch.float32), part))
    return products


def _tiles(wave: Wave, shape: tuple[int, int]) -> int:
    return -(-shape[0] // wave.tile) * -(-shape[1] // wave.tile)


def _length(segments: Sequence[tuple[Matrix, Matrix]]) -> int:
    return sum(a.shape[1] for a, _ in segments)


def _split(segments: Sequence[tuple[Matrix, Matrix]], longest: int) -> list[list[tuple[Matrix, Matrix]]]:
    """Segments in parts of about the same length, that of `longest` or a little more."""
    total = _length(segments)
    pieces = [piece for a, b in segments for piece in _cut(a, b, longest)]
    count, done = min(len(pieces), max(1, round(total / longest))), 0
    parts: list[list[tuple[Matrix, Matrix]]] = [[]]
    for pair in pieces:
        if done * count >= total * len(parts):
            parts.append([])
        parts[-1].append(pair)
        done += pair[0].shape[1]
    return parts


def _cut(a: Matrix, b: Matrix, longest: int) -> list[tuple[Matrix, Matrix]]:
    """A segment as several (a vocabulary is as long as many layers), in multiples of 64 but for the last."""
    k = a.shape[1]
    step = -(-k // -(-k // longest) // 64) * 64
    return [
        (a.narrow(1, start, min(step, k - start)), b.narrow(0, start, min(step, k - start)))
        for start in range(0, k, step)
    ]
