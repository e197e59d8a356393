"""Which maps an optimizer's moments grow by.

Moments average gradients, and gradients do not grow as weights do. Where growth keeps the function and the
units of an axis arrive as x' = S x, whatever reads them has S^T V = I, so the gradient at x' is V times the
gradient at x, and of a matrix y = W x it is

    dL/dW' = (V_y dL/dy) (S_x x)^T = V_y (dL/dW) S_x^T

U and V trade places: a unit copied k times has k copies, each read with 1 / k, so each has 1 / k of the
gradient. A norm's gain a' = a_r a is multiplied with x_hat' = S / a_r x_hat: its gradient grows by V S / a_r.
Exact for whole multiples at the same depth; with new layers no map is, and D stays what it is for weights.

Second moments grow by the squares of all entries: the variance of a sum of independent gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..axes import AxisMaps, PerLayer
from ..compute.order import Maps, each
from ..maps import Dense, Identity, Kron, Map, Selection, as_selection, kron, row_scale
from ..models.tables import read_families
from ..plan import Grown, Piece, make_pieces

if TYPE_CHECKING:
    from ..operator import GrowthOperator


def moment_pieces(op: GrowthOperator, policy: str) -> list[Piece]:
    """An operator's pieces with the maps of first moments; what a piece leaves out becomes zero.

    Raises:
        GrowthError: when a parameter of either model was resized since.
    """
    growth, depth = op.growth, op.growth.depth
    families = read_families(growth.architecture, op.small, op.large, growth.axes)
    if policy == "map":
        return [replace(piece, keep=False) for piece in op.pieces]
    if policy == "keep":
        depth = {name: first_copies(m) for name, m in depth.items()}
    maps: dict[str, Grown] = {}
    for name, grown in growth.maps.items():
        head = growth.tied and growth.axes[name].norm is not None  # a tied head reads this axis
        each = [
            _gradient(m, head) if policy == "gradient" else _kept(m)
            for m in (grown.maps if isinstance(grown, PerLayer) else [grown])
        ]
        maps[name] = PerLayer(grown.level, each) if isinstance(grown, PerLayer) else each[0]
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (op.small, op.large)]
    pieces = make_pieces(families, growth.axes, maps, lambda f: depth[f.name], op.pair, shapes, growth.tied)
    return [replace(piece, keep=False) for piece in pieces]


def squared(pieces: Sequence[Piece]) -> list[Piece]:
    """The same with the square of every entry of U, V and D."""
    made: dict[int, Map] = {}

    def square(m: Map) -> Map:
        if id(m) not in made:
            made[id(m)] = m.replace({k: t.detach().square() for k, t in m.factors().items()})
        return made[id(m)]

    def squares(maps: Maps) -> Maps:
        return square(maps) if isinstance(maps, Map) else [square(m) for m in maps]

    return [
        replace(
            piece,
            depth=None if piece.depth is None else square(piece.depth),
            rows=squares(piece.rows),
            cols=squares(piece.cols),
        )
        for piece in pieces
    ]


def _gradient(maps: AxisMaps, head: bool) -> AxisMaps:
    """The maps of gradients, in the roles of their parameters; `head`: a tied head reads the last norm."""
    arrives, read = maps.role("shift"), maps.role("in")
    gain = _gain(read, arrives, maps.role("gain"))
    if not head:
        return AxisMaps(read, arrives, gain, read, gain, read)
    final = _gain(maps.out, maps.role("shift+", tied=True), maps.role("gain+", tied=True))
    return AxisMaps(read, arrives, gain, read, final, maps.out)  # it reads with U


def _gain(read: Map, arrives: Map, gain: Map) -> Map:
    """V S / a for selections; elsewhere V, as if the normalised units were copies."""
    kinds = Identity | Selection
    if not (isinstance(read, kinds) and isinstance(arrives, kinds) and isinstance(gain, kinds)):
        return read
    v, s, a = as_selection(read), as_selection(arrives), as_selection(gain)
    like = next((m.scale for m in (v, s, a) if m.scale is not None), None)
    if like is None:
        return read
    v_row, s_row, a_row = (row_scale(m, like) for m in (v, s, a))
    ratio = torch.where(a_row != 0, v_row * s_row / torch.where(a_row != 0, a_row, 1.0), 0.0)
    return Selection(a.index, a.shape[1], ratio)


def _kept(maps: AxisMaps) -> AxisMaps:
    """Every old unit once, unscaled, in every role."""
    old = first_copies(maps.out)
    return AxisMaps(old, old, old, old, old, old)


def first_copies(m: Map) -> Map:
    """The first row made of each old unit, with a scale of one; all other rows are zero.

    A learned [I; C] keeps the rows of I. A dense row is made of the unit with its largest entry.
    """
    if isinstance(m, Identity):
        return m
    if isinstance(m, Kron):
        return kron(first_copies(m.A), first_copies(m.B))
    if isinstance(m, Selection):
        unit, used = m.index, m.index >= 0
        if m.scale is not None:
            used = used & (m.scale != 0)
    elif isinstance(m, Dense):
        unit = m.M.detach().abs().argmax(1)
        used = torch.ones_like(unit, dtype=torch.bool)
    else:
        unit = torch.arange(m.shape[0]) % m.shape[1]
        used = torch.arange(m.shape[0]) < m.shape[1]
    first = torch.zeros(m.shape[0], dtype=torch.float32)
    seen: set[int] = set()
    for row, (j, is_used) in enumerate(zip(unit.tolist(), used.tolist(), strict=True)):
        if is_used and j not in seen:
            seen.add(j)
            first[row] = 1.0
    device = next((t.device for t in m.factors().values()), unit.device)
    return Selection(unit.to(device), m.shape[1], first.to(device))


def whole(piece: Piece) -> bool:
    """Whether every entry that the piece writes comes from some old one: no row of U or V is zero."""
    return all(map(_reaches_every_row, (*each(piece.rows), *each(piece.cols))))


def mixes(piece: Piece) -> bool:
    """Whether an entry may be a sum of several old ones."""
    maps = (*([piece.depth] if piece.depth else []), *each(piece.rows), *each(piece.cols))
    return not all(isinstance(m, Identity | Selection) for m in maps)


def _reaches_every_row(m: Map) -> bool:
    factors = {k: t.detach().abs() for k, t in m.factors().items()}
    like = next(iter(factors.values()), torch.ones(1, dtype=torch.float32))
    return bool((m.replace(factors).left(like.new_ones(m.shape[1], 1)) > 0).all())
