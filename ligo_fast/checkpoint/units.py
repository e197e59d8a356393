"""An operator's pieces as units of streaming: what has to be in memory at the same time, and no more.

A parameter that only selects is grown by itself, from one source layer. Of a family that mixes units the
large layers of one source layer are a unit; one that mixes layers, or gets noise, is a unit as a whole.
What a method leaves as the target's constructor makes it is drawn first, as there is no constructor here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..compute.backend_select import not_for_select, one_layer
from ..compute.backend_torch import Block, grow_blocks
from ..compute.blend import Workspace
from ..compute.order import Maps, copies, is_width_first, per_layer
from ..maps import Identity, Selection, as_selection
from ..native.select import Take
from ..operator import GrowthOperator
from ..plan import Piece
from ..processes.sharded import part_of
from ..residual import add_noise
from ..tensors import grow_tensors
from ..views import Views
from .fresh import draw_


@dataclass(frozen=True)
class Unit:
    """Pieces that write the same parameters.

    Attributes:
        pieces: all of them. small, large: names of the parameters they read and write.
        selects: they only select, so that units can be done together.
        fresh: names of parameters that are drawn anew before pieces write some of their values, or none.
        moves: there is one of them and it changes nothing: a tensor of a layer that is only moved.
    """

    pieces: list[Piece]
    small: list[str]
    large: list[str]
    selects: bool
    moves: bool = False
    fresh: list[str] = field(default_factory=list)


def make_units(op: GrowthOperator) -> list[Unit]:
    """Units that write every parameter of the large model once, in the model's order."""
    families: dict[tuple[str, ...], list[Piece]] = {}
    for piece in op.pieces:
        families.setdefault(tuple(piece.large), []).append(piece)
    units = list[Unit]()
    for pieces in families.values():
        if op.growth.noise or not all(map(_selects, pieces)):
            small = dict.fromkeys(n for p in pieces for n in p.small)
            large = list(pieces[0].large)
            fresh = large if pieces[0].keep else []
            units += (
                _by_source(pieces)
                if _alike(pieces) and not op.growth.noise and not fresh
                else [Unit(pieces, list(small), large, False, fresh=fresh)]
            )
        else:
            units += _by_layer(pieces)
    written = {name: n for n, unit in enumerate(units) for name in unit.large}
    order = [name for name, _ in op.large.named_parameters()]
    for name in order:
        if name not in written:
            written[name] = len(units)
            units.append(Unit([], [], [name], True, fresh=[name]))
    return [units[n] for n in dict.fromkeys(written[name] for name in order)]


def _selects(piece: Piece) -> bool:
    """Whether each target layer comes from one source layer, by selection."""
    return isinstance(piece.depth, Identity | Selection | None) and not not_for_select(piece)


def _by_layer(pieces: list[Piece]) -> Iterator[Unit]:
    """One unit for each target layer of a family that only selects."""
    for layer, name in enumerate(pieces[0].large):
        parts = []
        for piece in pieces:
            j, scale, rows, cols = one_layer(piece, layer)
            depth = (
                None
                if scale == 1
                else Selection(torch.zeros(1).long(), 1, torch.tensor([scale], dtype=torch.float32))
            )
            part = replace(piece, small=[piece.small[j]], large=[name], depth=depth, rows=rows, cols=cols)
            parts.append(part)
        moves = len(parts) == 1 and _moves(parts[0])
        changes = any(not _is_identity(m) for p in parts for m in (p.rows, p.cols))
        fresh = [name] if parts[0].keep and changes else []
        yield Unit(parts, list(dict.fromkeys(p.small[0] for p in parts)), [name], True, moves, fresh)


def _alike(pieces: list[Piece]) -> bool:
    """Whether large layers come from one source layer each, the same for all the pieces; width goes first."""
    depths = [as_selection(p.depth).index for p in pieces if isinstance(p.depth, Identity | Selection)]
    if len(depths) < len(pieces) or not all(torch.equal(d, depths[0]) for d in depths):
        return False
    return all(is_width_first(p.depth, p.rows, p.cols, p.order) for p in pieces)


def _by_source(pieces: list[Piece]) -> Iterator[Unit]:
    """One unit for each source layer of a family that mixes units but no layers."""
    made = [copies(p.depth) for p in pieces if isinstance(p.depth, Identity | Selection)]
    for j, (layers, _) in made[0].items():
        parts = []
        for piece, each in zip(pieces, made, strict=True):
            count, large = len(piece.small), [piece.large[n] for n in layers]
            rows, cols = (per_layer(m, count)[j] for m in (piece.rows, piece.cols))
            part = replace(
                piece,
                small=[piece.small[j]],
                large=large,
                depth=each[j][1],
                rows=rows,
                cols=cols,
                order="auto",
            )
            parts.append(part)
        yield Unit(parts, list(dict.fromkeys(p.small[0] for p in parts)), large, False)


def _moves(piece: Piece) -> bool:
    """Whether a piece of one layer is the identity on a whole parameter."""
    whole = piece.small_slot.dim is None and piece.large_slot.dim is None
    return piece.depth is None and whole and _is_identity(piece.rows) and _is_identity(piece.cols)


def _is_identity(m: Maps) -> bool:
    if isinstance(m, Selection):
        return m.start == 0 and m.scale is None and m.shape[0] == m.shape[1]
    return isinstance(m, Identity)


def batches(units: Sequence[Unit], nbytes: Mapping[str, int], limit: int) -> Iterator[list[Unit]]:
    """Units that only select together, up to `limit` bytes written; others alone."""
    batch: list[Unit] = []
    used = 0
    for unit in units:
        n = sum(nbytes[name] for name in unit.large)
        if batch and (used + n > limit or not unit.selects or not batch[-1].selects):
            yield batch
            batch, used = [], 0
        batch.append(unit)
        used += n
    if batch:
        yield batch


@dataclass(frozen=True)
class Window:
    """Where some rows and columns of parameters lie, which are seen as matrices of `width` columns."""

    names: list[str]
    row: int
    column: int
    width: int


class Runner:
    """Grows units from tensors to tensors."""

    def __init__(self, op: GrowthOperator) -> None:
        self.op, self.takes, self.workspace = op, dict[int, Take](), Workspace()

    @torch.no_grad()
    def run(self, units: Sequence[Unit], small: Mapping[str, Tensor], large: Mapping[str, Tensor]) -> None:
        """Write `large`, tensors by name on the operator's device, from `small`; any floating dtypes."""
        small, large, op = dict(small), dict(large), self.op
        pieces = [piece for unit in units for piece in unit.pieces]
        for name in [name for unit in units for name in unit.fresh]:
            draw_(large[name], name, op)
        grow_tensors(pieces, small, large, op.dtype, self.takes, self.workspace)
        views = Views(small, large)
        for piece in pieces if op.growth.noise else ():
            part, sources = part_of(piece, large), views.sources(piece)
            add_noise(views.outs(piece), sources, part, op.growth.noise, op._context, op.dtype)

    def blocks(
        self, unit: Unit, small: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Iterator[tuple[Window, Block]]:
        """A unit without noise block by block, to be written in `dtype` each before the next is due."""
        for piece in unit.pieces:
            slot, shape = piece.large_slot, piece.large_shape
            assert shape is not None
            row, column = (slot.start if slot.dim == dim else 0 for dim in (0, 1))
            sources, maps = [piece.small_slot.of(small[n]) for n in piece.small], (piece.rows, piece.cols)
            for block in grow_blocks(
                sources, piece.depth, *maps, piece.order, self.op.dtype, self.workspace, out_dtype=dtype
            ):
                names = [piece.large[layer] for layer in block.layers]
                at = row + block.rows.start, column + block.cols.start
                yield Window(names, *at, shape[slot.split :].numel()), block
