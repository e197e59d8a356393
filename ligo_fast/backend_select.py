"""Growing by fixed selections (copying, stacking, tiling): a model's pieces in one compiled call."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import cpu, cuda
from .backend_torch import Maps, is_width_first, per_layer
from .backends import Owners, Tensors
from .dtensors import local
from .maps import Identity, Map, Selection
from .plan import Piece
from .select import TYPES, Item, Table, Take, take, why_not
from .unchanged import Snapshot


def why_not_select(device: torch.device) -> str:
    """Why tensors on `device` are not for the compiled selection; empty when they are."""
    if os.environ.get("LIGO_FAST_BACKEND") == "torch":
        return "LIGO_FAST_BACKEND=torch"
    if device.type not in ("cpu", "cuda"):
        return f"tensors on {device.type}"
    return cpu.why_not() if device.type == "cpu" else cuda.why_not()


class Plan:
    """The pieces that only select, bound to two models or two sets of tensors; made once, used every call.

    Attributes:
        covered: numbers of the pieces that `apply` writes, or that are None: nothing to do here.
        rejected: for each other piece, why torch does it.
    """

    def __init__(self, pieces: Sequence[Piece | None], small: Tensors, large: Tensors) -> None:
        self._owners = Owners()
        self._takes: dict[int, Take] = {}  # by the identity of the map, which the pieces keep alive
        mine = {n: piece for n, piece in enumerate(pieces) if piece is not None}
        self.rejected = {n: why for n, piece in mine.items() if (why := _not_for_select(piece))}
        items: dict[int, list[Item]] = {}
        for n, piece in mine.items():
            if n not in self.rejected:
                items[n] = self._items(piece, small, large)
                if odd := {t.dtype for i in items[n] for t in (i.source, i.out)} - set(TYPES):
                    self.rejected[n] = f"weights of {odd.pop()}"
                    del items[n]
        every = [item for some in items.values() for item in some]
        if every and (why := why_not(every)):  # tied or overlapping parameters, say
            self.rejected |= dict.fromkeys(items, why)
            items, every = {}, []
        self.covered = {n for n, piece in enumerate(pieces) if piece is None or n in items}
        self.table = Table(every)
        self.factors = [t for n in items for m in mine[n].maps() for t in _tensors(m)]
        self._fixed = Snapshot(self.factors)

    def _items(self, piece: Piece, small: Tensors, large: Tensors) -> list[Item]:
        sources, outs = (
            [slot.of(local(self._owners.own(model, name).detach())) for name in names]
            for model, names, slot in (
                (small, piece.small, piece.small_slot),
                (large, piece.large, piece.large_slot),
            )
        )
        depth = piece.depth
        layers, scales = list(range(len(outs))), [1.0] * len(outs)
        if isinstance(depth, Selection):
            layers = depth.index.tolist()
            scales = scales if depth.scale is None else depth.scale.tolist()
        by_source = is_width_first(depth, piece.rows, piece.cols, piece.order)
        count = len(sources) if by_source else len(outs)
        rows, cols = per_layer(piece.rows, count), per_layer(piece.cols, count)
        items = []
        for layer, (out, j, scale) in enumerate(zip(outs, layers, scales, strict=True)):
            n = j if by_source else layer
            device = str(out.device)
            sides = self._take(rows[n], device), self._take(cols[n], device)
            items.append(Item(sources[j], out, *sides, scale))
        return items

    def _take(self, m: Map, device: str) -> Take:
        if id(m) not in self._takes:
            index = m.index if isinstance(m, Selection) else range(m.shape[0])
            scale = m.scale if isinstance(m, Selection) else None
            self._takes[id(m)] = take(index, m.shape[1], scale, device=device)
        return self._takes[id(m)]

    @property
    def is_current(self) -> bool:
        """Whether every parameter and every map is still the tensor, with the memory, of the table."""
        return self._owners.hold() and (not self.factors or self._fixed.holds(self.factors))

    def apply(self) -> None:
        """Write the parameters of the covered pieces."""
        self.table()


def _not_for_select(piece: Piece) -> str:
    """Why a piece is more than a fixed selection; empty when it is one."""
    if piece.keep:
        return "new units keep the target's weights"
    for maps in (piece.depth, piece.rows, piece.cols):
        for m in _each(maps):
            if not isinstance(m, Identity | Selection):
                return f"{m!r}"
            if any(isinstance(t, nn.Parameter) for t in m.factors().values()):
                return "learned scales"
    return ""


def _each(maps: Maps | None) -> list[Map]:
    return [] if maps is None else [maps] if isinstance(maps, Map) else list(maps)


def _tensors(m: Map) -> list[Tensor]:
    return [t for t in (m.index, m.scale) if t is not None] if isinstance(m, Selection) else []
