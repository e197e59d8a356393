"""From a family of weights to items of grouped launches; knows tensors and kernels, not models.

With U = [diag_u; C_u] and V = [diag_v; C_v] a grown layer has four quadrants. Each blends the L1 small layers
of one array A, so that products run on small layers only and the scales are those of the blend:

    Y[l] = | rs cs sum_j D[l, j] W[j]     rs sum_j D[l, j] TR[j] |     TR = W C_v^T     rs = diag_u
           | cs sum_j D[l, j] BL[j]          sum_j D[l, j] BR[j] |     BL = C_u W       cs = diag_v

    BR = BL C_v^T  or  C_u TR, whichever costs less.

The adjoint finds those A that a gradient depends on where the forward left them, or makes them again. It
blends G = dL/dY back to the gradient of each A (and takes dD and the scales' gradients there), and then goes
through the products backwards.

Where D is the identity and nothing scales a quadrant, A is that quadrant: its product is written there, and
its gradient is read there, without a blend.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.blend import NONE, Blend, Scale, sum_counts
from ..kernels.configs import THIN
from ..kernels.expand import TYPES, Product
from ..kernels.table import Matrix
from .family import Family
from .lowering import Depth, Lowering, Side, Unsupported
from .waves import ADJOINT, Stage, Wave

OWN_LAUNCH = 1 << 20  # elements of a gradient, not float32, that another kind of launch is worth


def lower(family: Family, to: Lowering, wave: Wave, number: int = 0) -> None:
    """Add the items of a wave's family of some number. Raises Unsupported before anything was added."""
    f = family.oriented()
    u, v = to.side(f.rows), to.side(f.cols)
    d = to.depth(f.depth, len(f.ws))
    if odd := {m.dtype for m in (*f.ws, *f.ys)} - set(TYPES):
        raise Unsupported(f"weights of {odd.pop()}")
    if not all(m.runs(0) or m.runs(1) for m in f.ws) or not all(m.runs(1) for m in (*f.ys, *f.dws)):
        raise Unsupported("strides")
    for alike in (f.ws, f.ys):
        if len({(m.stride, m.dtype) for m in alike}) > 1:
            raise Unsupported("layers of unlike strides or dtypes")
    work = _Work(f, d, _quadrants(u, v), _steps(u, v, f.ws[0].shape), to, wave, number)
    if wave.is_adjoint:
        work.adjoint()
    else:
        work.forward()


@dataclass(frozen=True)
class _Quadrant:
    """A block of every grown layer: the blend of an array's layers, its rows and columns scaled."""

    rows: tuple[int, int]  # the first, and how many
    columns: tuple[int, int]
    scales: tuple[Scale, Scale]
    factors: tuple[Tensor | None, Tensor | None]  # the scales, where they may be learned
    groups: tuple[int, int]

    def of(self, layers: list[Matrix]) -> list[Matrix]:
        return [m.narrow(0, *self.rows).narrow(1, *self.columns) for m in layers]


@dataclass(frozen=True)
class _Step:
    """An array made of another: (C (x) I) x for every layer x of it (dim 0), or x (C (x) I)^T (dim 1)."""

    out: str
    side: Side
    dim: int
    source: str
    stage: int
    back: int  # its stage in the adjoint

    @property
    def C(self) -> Matrix:
        assert self.side.C is not None
        return self.side.C

    @property
    def factor(self) -> Tensor | None:
        return self.side.factors[0]


def _quadrants(u: Side, v: Side) -> dict[str, _Quadrant]:
    """Those that are not empty, by the array that each blends."""
    found = {}
    for name, r, c, rs, cs in (
        ("W", (0, u.kept), (0, v.kept), u, v),
        ("TR", (0, u.kept), (v.kept, v.new), u, None),
        ("BL", (u.kept, u.new), (0, v.kept), None, v),
        ("BR", (u.kept, u.new), (v.kept, v.new), None, None),
    ):
        if r[1] and c[1]:
            scales = NONE if rs is None else rs.scale, NONE if cs is None else cs.scale
            factors = None if rs is None else rs.factors[1], None if cs is None else cs.factors[1]
            found[name] = _Quadrant(r, c, scales, factors, (u.group, v.group))
    return found


def _steps(u: Side, v: Side, shape: tuple[int, int]) -> list[_Step]:
    """The products, each after that of its source."""
    (o1, i1), both = shape, u.new > 0 and v.new > 0
    by_left = v.flops(u.new) + (0 if v.kept else u.flops(i1))
    left_first = by_left <= u.flops(v.new) + (0 if u.kept else v.flops(o1))
    steps = []
    if u.new and (v.kept or left_first):
        steps.append(_Step("BL", u, 0, "W", 0, 5))
    if v.new and (u.kept or not left_first):
        steps.append(_Step("TR", v, 1, "W", 1, 6))
    if both:
        steps.append(_Step("BR", v, 1, "BL", 1, 4) if left_first else _Step("BR", u, 0, "TR", 2, 4))
    return steps


@dataclass
class _Work:
    """One family's items, added to the stages of a wave."""

    family: Family
    depth: Depth
    quadrants: dict[str, _Quadrant]
    steps: list[_Step]
    to: Lowering
    wave: Wave
    number: int

    def __post_init__(self) -> None:
        self.arrays: dict[str, list[Matrix]] = {"W": self.family.ws}  # L1 layers of each, where made
        self.shapes = {"W": self.family.ws[0].shape}
        for s in self.steps:
            rows, columns = self.shapes[s.source]
            self.shapes[s.out] = (s.side.new, columns) if s.dim == 0 else (rows, s.side.new)

    def forward(self) -> None:
        ys = self.family.ys
        for s in self.steps:
            there = self._in_place(s.out, ys)
            self.arrays[s.out] = there or self._empty(s.out)
            self._apply(s, self.wave.stages)
            if not there and (s.source == "W" or (self.number, s.source) in self.wave.arrays):
                self.wave.arrays[self.number, s.out] = self.arrays[s.out]
        for name, q in self.quadrants.items():
            if self.arrays[name] != (block := q.of(ys)):
                blend = Blend(self.depth.matrix, self.arrays[name], block, *q.scales)
                self.wave.stages[ADJOINT].blends.append(blend)

    def adjoint(self) -> None:
        learns = self.to.learns
        read = dict.fromkeys(self.shapes, False)  # whether a gradient depends on the array
        for name, q in self.quadrants.items():
            read[name] = any(map(learns, (self.depth.factor, *q.factors)))
        for s in reversed(self.steps):
            read[s.source] |= read[s.out] or learns(s.factor)
        wanted = {"W": bool(self.family.dws)}  # whether its own gradient is
        for s in self.steps:
            wanted[s.out] = wanted[s.source] or learns(s.factor)
            if read[s.out]:
                left = self.wave.arrays.get((self.number, s.out))
                self.arrays[s.out] = left or self._empty(s.out)
                self._apply(s, self.wave.again if left else self.wave.stages)

        grads = {"W": self.family.dws}  # as far as they are added up
        for name, q in self.quadrants.items():
            if name != "W" and wanted[name] and (gs := self._in_place(name, self.family.gs)):
                grads[name] = gs
                continue
            if wanted[name] and name != "W":
                more = any(s.source == name and wanted[s.out] for s in self.steps)
                grads[name] = self._empty(name, torch.float32 if more else self._gradient_dtype(name, wanted))
            self._blend_back(name, q, grads.get(name, []), name == "W")
        for s in reversed(self.steps):
            if wanted[s.out]:
                before = grads.get(s.source, [])
                if wanted[s.source]:
                    dtype = self._gradient_dtype(s.source, wanted)
                    grads[s.source] = [m for m in before if m.dtype == dtype] or self._empty(s.source, dtype)
                self._pull_back(s, grads[s.out], grads.get(s.source, []), before)

    def _gradient_dtype(self, name: str, wanted: dict[str, bool]) -> torch.dtype:
        """The wave's where every product that reads the gradient would round it to that; else float32."""
        if name == "W" or any(s.source == name and s.side.group > 1 for s in self.steps):
            return torch.float32
        (reader,) = (s for s in self.steps if s.out == name)
        rows = [reader.C.shape[0]] if self.to.learns(reader.factor) else []
        rows += [self.shapes[reader.source][0]] if wanted[reader.source] else []
        return self.wave.dtype if reader.side.group == 1 and min(rows) > THIN else torch.float32

    def _empty(self, name: str, dtype: torch.dtype | None = None) -> list[Matrix]:
        """Room for the layers of an array in the workspace."""
        return [self.wave.empty(*self.shapes[name], dtype) for _ in self.family.ws]

    def _in_place(self, name: str, layers: list[Matrix]) -> list[Matrix]:
        """The blocks of grown layers, or of their gradients, that an array is itself; none where it is not.

        Nor where that would round what another product reads, add to the gradient that was given, make the
        kernels load single elements, or be another kind of product for a small gradient.
        """
        q = self.quadrants.get(name)
        if q is None or not self.depth.is_identity or q.scales != (NONE, NONE):
            return []
        blocks, own = q.of(layers), self.wave.dtype
        if any(s.source == name for s in self.steps) and (
            self.wave.is_adjoint or blocks[0].dtype not in (torch.float32, own)
        ):
            return []
        rows, columns = self.shapes[name]
        small = rows * columns * len(blocks) < OWN_LAUNCH
        if self.wave.is_adjoint and small and blocks[0].dtype != torch.float32:
            return []
        n = 16 // min(blocks[0].dtype.itemsize, self.family.ws[0].dtype.itemsize)
        return blocks if blocks[0].shape[1] % n or all(b.aligned(1, n) for b in blocks) else []

    def _apply(self, s: _Step, stages: dict[int, Stage]) -> None:
        """The product of every layer, one of these stages."""
        group = s.side.group
        for x, out in zip(self.arrays[s.source], self.arrays[s.out], strict=True):
            if group > 1:
                blend = Blend(s.C, _heads(x, s.dim, group), _heads(out, s.dim, group))
                stages[s.stage].blends.append(blend)
            else:
                c = self._factor(s, out)
                pair = (c, x) if s.dim == 0 else (x, c.t())
                stages[s.stage].products.append(Product(out, [pair]))

    def _factor(self, s: _Step, out: Matrix) -> Matrix:
        """C as the product reads it that makes `out`: rounded once where each of its programs would do so."""
        if self.wave.dtype == torch.float32 or out.shape[0] <= THIN:
            return s.C
        return self.wave.rounded(s.C, self.to.depth(None, 1).matrix)

    def _sums(self, factor: Tensor | None, count: int, n: int, group: int = 1) -> tuple[int, int]:
        """Room for partial sums of a factor's gradient, where it is learned."""
        slot = self.to.sums_slot(factor, group)
        return (-1, 0) if slot is None else self.wave.sum_of(slot, count, n)

    def _blend_back(self, name: str, q: _Quadrant, dxs: list[Matrix], add: bool) -> None:
        """From G to the gradient of an array (where wanted), and those of D and of the scales."""
        d, gs = self.depth.matrix, q.of(self.family.gs)
        shape = gs[0].shape
        factors, sizes = (self.depth.factor, *q.factors), (d.shape[0] * d.shape[1], *shape)
        counts = sum_counts(shape, self.wave.config)
        sums = tuple(map(self._sums, factors, counts, sizes, (1, *q.groups)))
        if dxs or any(slot >= 0 for slot, _ in sums):
            # read for sums only: without them any of that shape and of the others' dtype will do
            xs = self.arrays.get(name) or [replace(m, dtype=self.wave.dtype) for m in dxs]
            blend = Blend(d, xs, gs, *q.scales, dxs, add, sums)
            self.wave.stages[ADJOINT].blends.append(blend)

    def _pull_back(self, s: _Step, gs: list[Matrix], dxs: list[Matrix], before: list[Matrix]) -> None:
        """From the gradients gs of what `_apply` made: those of its source (where wanted), and dC.

        `before` is what other products and blends gave to those of the source, if anything.
        """
        stage, group = self.wave.stages[s.back], s.side.group
        slot, n = self.to.sums_slot(s.factor), s.C.shape[0] * s.C.shape[1]
        for x, g, dx, add in itertools.zip_longest(self.arrays.get(s.source, []), gs, dxs, before):
            if group > 1:
                dx_heads = _heads(dx, s.dim, group) if dx is not None else []
                x_heads = _heads(x, s.dim, group) if x is not None else dx_heads
                count = sum_counts(x_heads[0].shape, self.wave.config)[0]
                sums = (self._sums(s.factor, count, n), (-1, 0), (-1, 0))
                g_heads = _heads(g, s.dim, group)
                blend = Blend(s.C, x_heads, g_heads, dxs=dx_heads, add=add is not None, sums=sums)
                stage.blends.append(blend)
                continue
            if dx is not None:
                c = self._factor(s, dx)
                pair = (c.t(), g) if s.dim == 0 else (g, c)
                stage.products.append(Product(dx, [pair], add))
            if slot is not None:
                pair = (g, x.t()) if s.dim == 0 else (g.t(), x)
                kind = Product(Matrix(0, 0, s.C.shape, (s.C.shape[1], 1), torch.float32), [pair]).kind
                self.wave.segments[slot, s.C.shape, kind].append(pair)


def _heads(m: Matrix, dim: int, size: int) -> list[Matrix]:
    return [m.narrow(dim, a, size) for a in range(0, m.shape[dim], size)]
