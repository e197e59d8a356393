"""From maps on families of weights to items of grouped launches; knows tensors and kernels, not models.

With U = [diag_u; C_u] and V = [diag_v; C_v] a grown layer has four quadrants. Each blends the L1 small layers
of one array A, so that products run on small layers only and the scales are those of the blend:

    Y[l] = | rs cs sum_j D[l, j] W[j]     rs sum_j D[l, j] TR[j] |     TR = W C_v^T     rs = diag_u
           | cs sum_j D[l, j] BL[j]          sum_j D[l, j] BR[j] |     BL = C_u W       cs = diag_v

    BR = BL C_v^T  or  C_u TR, whichever costs less.

The adjoint makes the A again, blends G = dL/dY back to the gradient of each A (and takes dD and the scales'
gradients there), and then goes through the products backwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .kernels.blend import NONE, Blend, Scale, sum_counts
from .kernels.expand import TYPES, Product
from .kernels.table import Matrix, Slots
from .kernels.total import Total
from .maps import Dense, Identity, Kron, Map, PrefixDiagonal, Selection
from .waves import ADJOINT, Wave


class Unsupported(Exception):
    """The kernels do not cover these maps or tensors; torch does."""


@dataclass(frozen=True)
class Side:
    """The map of one side: `kept` leading units times `scale`, then C (x) I_group of the old units."""

    kept: int
    scale: Scale
    C: Matrix | None
    group: int = 1  # head_dim, where C mixes whole heads
    factors: tuple[Tensor | None, Tensor | None] = (None, None)  # C and scale, where learned

    @property
    def new(self) -> int:
        return 0 if self.C is None else self.C.shape[0] * self.group

    def flops(self, m: int) -> int:
        return 0 if self.C is None else 2 * self.C.shape[0] * self.C.shape[1] * self.group * m


class Lowering:
    """Turns families into items; remembers which slot holds which tensor.

    Args:
        learned: the factors whose gradient is wanted.
    """

    def __init__(self, slots: Slots, learned: Sequence[Tensor]) -> None:
        self.slots = slots
        self.fixed: list[Tensor] = []  # tensors made here that the tables point to
        self.slot_of: dict[int, int] = {}
        self.constants: dict[tuple[int, int], Matrix] = {}  # depth maps that are not learned
        self.learned = {id(t) for t in learned}
        self.sums: dict[int, int] = {}  # id of a factor -> slot of its partial sums
        self.totals: dict[int, tuple[Tensor, int]] = {}  # that slot -> factor, group

    def add(self, tensor: Tensor) -> int:
        if id(tensor) not in self.slot_of:
            self.slot_of[id(tensor)] = self.slots.add(tensor)
        return self.slot_of[id(tensor)]

    def _factor(self, t: Tensor) -> int:
        if t.dtype != torch.float32 or (t.dim() == 1 and not t.is_contiguous()):
            raise Unsupported(f"a factor of {t.dtype} and strides {t.stride()}")
        return self.add(t)

    def sums_slot(self, factor: Tensor | None, group: int = 1) -> int | None:
        """The slot of a learned factor's partial sums; None for one that is not learned."""
        if factor is None or id(factor) not in self.learned:
            return None
        if id(factor) not in self.sums:
            self.sums[id(factor)] = self.slots.add(None)
            self.totals[self.sums[id(factor)]] = (factor, group)
        return self.sums[id(factor)]

    def side(self, m: Map) -> Side:
        if isinstance(m, Identity):
            return Side(m.shape[1], NONE, None)
        group, inner = 1, m
        while isinstance(inner, Kron) and isinstance(inner.B, Identity):
            group, inner = group * inner.B.shape[0], inner.A
        if isinstance(inner, PrefixDiagonal):
            c, scale = inner.C, NONE
            if inner.diag is not None:
                scale = Scale(self._factor(inner.diag), 0, group)
            kept = inner.shape[1] * group
        elif isinstance(inner, Dense):
            c, kept, scale = inner.M, 0, NONE
        else:
            raise Unsupported(f"{inner!r}")
        matrix = Matrix.of(c, self._factor(c), c) if c.numel() else None
        if matrix is not None and not (matrix.runs(0) or matrix.runs(1)):
            raise Unsupported(f"a factor of strides {c.stride()}")
        diag = inner.diag if isinstance(inner, PrefixDiagonal) else None
        return Side(kept, scale, matrix, group, (c, diag))

    def depth(self, m: Map | None, layers: int) -> tuple[Matrix, Tensor | None]:
        """D as a matrix, and the tensor it is if that may be learned."""
        if isinstance(m, Dense):
            return Matrix.of(m.M, self._factor(m.M), m.M), m.M
        if m is not None and not isinstance(m, Identity | Selection):
            raise Unsupported(f"depth {m!r}")
        if isinstance(m, Selection) and id(m.scale) in self.learned:
            raise Unsupported("a learned scale of layers")
        key = (id(m), layers)
        if key not in self.constants:
            d = (Identity(layers) if m is None else m).dense(torch.float32)
            d = d.to(self.slots.device).contiguous()
            self.fixed.append(d)
            self.constants[key] = Matrix.of(d, self.add(d), d)
        return self.constants[key], None


@dataclass
class Family:
    """ys[l] = U (sum_j D[l, j] ws[j]) V^T as matrices in slots; gs are dL/dys, dws where dL/dws goes."""

    depth: Map | None
    rows: Map
    cols: Map
    ws: list[Matrix]
    ys: list[Matrix]
    gs: list[Matrix]
    dws: list[Matrix] = field(default_factory=list)

    def oriented(self) -> Family:
        """The same work with ys running along their columns; a column of numbers becomes a row."""
        y = self.ys[0]
        if (y.runs(1) and y.shape[1] > 1) or y.shape[0] == 1:
            return self
        turned = [[m.t() for m in ms] for ms in (self.ws, self.ys, self.gs, self.dws)]
        return Family(self.depth, self.cols, self.rows, *turned)


def lower(family: Family, to: Lowering, wave: Wave) -> None:
    """Add a family's items to a wave. Raises Unsupported before anything was added."""
    f = family.oriented()
    u, v = to.side(f.rows), to.side(f.cols)
    d, d_factor = to.depth(f.depth, len(f.ws))
    if odd := {m.dtype for m in (*f.ws, *f.ys)} - set(TYPES):
        raise Unsupported(f"weights of {odd.pop()}")
    if not all(m.runs(0) or m.runs(1) for m in f.ws) or not all(m.runs(1) for m in (*f.ys, *f.dws)):
        raise Unsupported("strides")
    for alike in (f.ws, f.ys):
        if len({(m.stride, m.dtype) for m in alike}) > 1:
            raise Unsupported("layers of unlike strides or dtypes")

    (o1, i1), work = f.ws[0].shape, _Work(to, wave)
    both = u.new > 0 and v.new > 0
    by_left = v.flops(u.new) + (0 if v.kept else u.flops(i1))
    left_first = by_left <= u.flops(v.new) + (0 if u.kept else v.flops(o1))
    left = work.apply(u, 0, f.ws, 0) if u.new and (v.kept or left_first) else None
    right = work.apply(v, 1, f.ws, 1) if v.new and (u.kept or not left_first) else None
    corner = None
    if both and left_first:
        corner = work.apply(v, 1, left or [], 1)
    elif both:
        corner = work.apply(u, 0, right or [], 2)

    top, bottom, first, rest = (0, u.kept), (u.kept, u.new), (0, v.kept), (v.kept, v.new)
    us, vs = u.factors[1], v.factors[1]
    quadrants = [
        (a, r, c, rs, cs, learned)
        for a, r, c, rs, cs, learned in (
            (f.ws, top, first, u.scale, v.scale, (us, vs)),
            (right, top, rest, u.scale, NONE, (us, None)),
            (left, bottom, first, NONE, v.scale, (None, vs)),
            (corner, bottom, rest, NONE, NONE, (None, None)),
        )
        if a is not None and r[1] and c[1]
    ]

    def block(ms: list[Matrix], r: tuple[int, int], c: tuple[int, int]) -> list[Matrix]:
        return [m.narrow(0, *r).narrow(1, *c) for m in ms]

    if not wave.is_adjoint:
        for a, r, c, rs, cs, _ in quadrants:
            wave.stages[ADJOINT].blends.append(Blend(d, a, block(f.ys, r, c), rs, cs))
        return

    grads: dict[int, list[Matrix]] = {id(f.ws): f.dws}  # of an array, by its identity
    wanted = bool(f.dws) or any(to.sums_slot(t) is not None for t in (u.factors[0], v.factors[0]))

    def grad(a: list[Matrix]) -> tuple[list[Matrix], bool]:
        """Where the gradient of an array goes, and whether something is there already."""
        known = id(a) in grads
        if not known:
            grads[id(a)] = [wave.empty(*m.shape, torch.float32) for m in a] if wanted else []
        return grads[id(a)], known

    for a, r, c, rs, cs, learned in quadrants:
        dxs, add = grad(a)
        shape = (r[1], c[1])
        sums = tuple(
            work.sums(factor, count, n, group)
            for factor, count, n, group in zip(
                (d_factor, *learned),
                sum_counts(shape, wave.config),
                (d.shape[0] * d.shape[1], *shape),
                (1, u.group, v.group),
                strict=True,
            )
        )
        if dxs or any(slot >= 0 for slot, _ in sums):
            blend = Blend(d, a, block(f.gs, r, c), rs, cs, dxs, add, sums)
            wave.stages[ADJOINT].blends.append(blend)
    if wanted and corner is not None and left_first:
        work.adjoint(v, 1, left or [], grad(corner)[0], *grad(left or []), 4)
    elif wanted and corner is not None:
        work.adjoint(u, 0, right or [], grad(corner)[0], *grad(right or []), 4)
    if wanted and left is not None:
        work.adjoint(u, 0, f.ws, grad(left)[0], f.dws, True, 5)
    if wanted and right is not None:
        work.adjoint(v, 1, f.ws, grad(right)[0], f.dws, True, 6)


@dataclass
class _Work:
    """The products of one family, added to the stages of a wave. `dim` is the side that a map is on."""

    to: Lowering
    wave: Wave

    def sums(self, factor: Tensor | None, count: int, n: int, group: int = 1) -> tuple[int, int]:
        """Room for partial sums of a factor's gradient, where it is learned."""
        slot = self.to.sums_slot(factor, group)
        return (-1, 0) if slot is None else self.wave.sum_of(slot, count, n)

    def apply(self, m: Side, dim: int, xs: list[Matrix], stage: int) -> list[Matrix]:
        """(C (x) I) x for every x, or x (C (x) I)^T."""
        assert m.C is not None
        shape = (m.new, xs[0].shape[1]) if dim == 0 else (xs[0].shape[0], m.new)
        outs = [self.wave.empty(*shape) for _ in xs]
        for x, out in zip(xs, outs, strict=True):
            if m.group > 1:
                blend = Blend(m.C, _heads(x, dim, m.group), _heads(out, dim, m.group))
                self.wave.stages[stage].blends.append(blend)
            else:
                pair = (m.C, x) if dim == 0 else (x, m.C.t())
                self.wave.stages[stage].products.append(Product(out, [pair]))
        return outs

    def adjoint(
        self, m: Side, dim: int, xs: list[Matrix], gs: list[Matrix], dxs: list[Matrix], add: bool, stage: int
    ) -> None:
        """From the gradients gs of what `apply` made: those of the xs (where wanted), and dC."""
        assert m.C is not None
        slot, n = self.to.sums_slot(m.factors[0]), m.C.shape[0] * m.C.shape[1]
        for x, g, dx in itertools.zip_longest(xs, gs, dxs):
            if m.group > 1:
                x_heads, g_heads = _heads(x, dim, m.group), _heads(g, dim, m.group)
                sums = self.sums(m.factors[0], sum_counts(x_heads[0].shape, self.wave.config)[0], n)
                dx_heads = _heads(dx, dim, m.group) if dx is not None else []
                blend = Blend(m.C, x_heads, g_heads, dxs=dx_heads, add=add, sums=(sums, (-1, 0), (-1, 0)))
                self.wave.stages[stage].blends.append(blend)
                continue
            if dx is not None:
                pair = (m.C.t(), g) if dim == 0 else (g, m.C)
                self.wave.stages[stage].products.append(Product(dx, [pair], add))
            if slot is not None:
                pair = (g, x.t()) if dim == 0 else (g.t(), x)
                kind = Product(Matrix(0, 0, m.C.shape, m.C.shape[::-1], torch.float32), [pair]).kind
                self.wave.segments[slot, m.C.shape, kind].append(pair)


def _heads(m: Matrix, dim: int, size: int) -> list[Matrix]:
    return [m.narrow(dim, a, size) for a in range(0, m.shape[dim], size)]


def totals(wave: Wave, to: Lowering, grad_slot: dict[int, int]) -> list[Total]:
    """How the partial sums of a wave are added to the factors' gradients."""
    result = []
    for slot, count in wave.sums.items():
        factor, group = to.totals[slot]
        result.append(Total(grad_slot[id(factor)], 0, slot, 0, factor.numel(), count, group))
    return result
