"""Growing by fixed selections (copying, stacking, tiling): a model's pieces in one compiled call.

Layers may be sums of a few: those pieces are a second call.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ..maps import Identity, Map, Selection, is_learned
from ..models.owners import Owners, Tensors
from ..native import cpu, cuda, layouts
from ..native.refusal import TYPES, Use, refusal
from ..native.select import Item, Table, Take, take, uses
from ..plan import Piece
from ..processes.dtensors import is_sharded, local
from ..unchanged import Snapshot
from . import sums
from .backends import asked_for
from .order import each, is_width_first, per_layer

A_FEW = 4  # layers that a large one may be the sum of


def why_not_select(device: torch.device, asked: str | None = None) -> str:
    """Why tensors on `device` are not for the compiled selection; empty when they are."""
    if (asked_for() if asked is None else asked) == "torch":
        return "LIGO_FAST_BACKEND=torch"
    kind = device.type
    if kind not in ("cpu", "cuda"):
        return f"tensors on {kind}"
    return cpu.why_not() if kind == "cpu" else cuda.why_not()


def one_layer(piece: Piece, layer: int) -> tuple[int, float, Map, Map]:
    """Of a piece that only selects: the source layer of a target layer, its scale, rows and columns."""
    depth, j, scale = piece.depth, layer, 1.0
    if isinstance(depth, Selection):
        j = int(depth.index[layer])
        scale = 1.0 if depth.scale is None else float(depth.scale[layer])
    by_source = is_width_first(depth, piece.rows, piece.cols, piece.order)
    count, n = (len(piece.small), j) if by_source else (len(piece.large), layer)
    return j, scale, per_layer(piece.rows, count)[n], per_layer(piece.cols, count)[n]


class Plan:
    """The pieces that only select, bound to two models or two sets of tensors; made once, used every call.

    Attributes:
        covered: numbers of the pieces that `apply` writes, or that are None: nothing to do here.
        rejected: for each other piece, why torch does it.
    """

    def __init__(
        self,
        pieces: Sequence[Piece | None],
        small: Tensors,
        large: Tensors,
        takes: dict[int, Take] | None = None,
    ) -> None:
        """Plans may share `takes`: indices by the identity of their map, which the pieces keep alive."""
        self._takes = {} if takes is None else takes
        mine = {n: piece for n, piece in enumerate(pieces) if piece is not None}
        self.rejected = {n: why for n, piece in mine.items() if (why := not_for_select(piece))}
        selecting = [piece for n, piece in mine.items() if n not in self.rejected]
        self._owners = (
            Owners(small, [name for piece in selecting for name in piece.small]),
            Owners(large, [name for piece in selecting for name in piece.large]),
        )
        self._named = [dict(zip(o.names, o.now(), strict=True)) for o in self._owners]
        self._tensors = [t for named in self._named for t in named.values()]
        self._sharded = any(map(is_sharded, self._tensors))
        self._seen = self._look()
        items: dict[int, list[Item | sums.Sum]] = {}
        for n, piece in mine.items():
            if n not in self.rejected:
                items[n] = self._items(piece)
                if odd := {use.tensor.dtype for i in items[n] for use in _uses(i)} - set(TYPES):
                    self.rejected[n] = f"weights of {odd.pop()}"
                    del items[n]
        every = [item for some in items.values() for item in some]
        if every and (why := refusal([use for item in every for use in _uses(item)], [])):
            self.rejected |= dict.fromkeys(items, why)  # tied or overlapping parameters, say
            items, every = {}, []
        self.covered = frozenset(n for n, piece in enumerate(pieces) if piece is None or n in items)
        self.table = Table([item for item in every if isinstance(item, Item)])
        self.sums = sums.Table([item for item in every if isinstance(item, sums.Sum)])
        self.factors = [t for n in items for m in mine[n].maps() for t in _tensors(m)]
        self._fixed = Snapshot(self.factors)

    def _items(self, piece: Piece) -> list[Item | sums.Sum]:
        sources, outs = (
            [slot.of(local(named[name].detach())) for name in names]
            for named, names, slot in (
                (self._named[0], piece.small, piece.small_slot),
                (self._named[1], piece.large, piece.large_slot),
            )
        )
        device = str(outs[0].device)
        if not isinstance(piece.depth, Identity | Selection | None):
            assert isinstance(piece.rows, Map) and isinstance(piece.cols, Map)
            sides = sums.forward(piece.rows, device), sums.forward(piece.cols, device)
            return [
                sums.Sum([sources[j] for j in terms], list(terms.values()), out, *sides)
                for out, terms in zip(outs, _terms(piece.depth), strict=True)
            ]
        items: list[Item | sums.Sum] = []
        for layer, out in enumerate(outs):
            j, scale, rows, cols = one_layer(piece, layer)
            item = Item(sources[j], out, self._take(rows, device), self._take(cols, device), scale)
            items.append(_kept(item, rows, cols, device) if piece.keep else item)
        return items

    def _take(self, m: Map, device: str) -> Take:
        if id(m) not in self._takes:
            self._takes[id(m)] = take(*_selected(m), device=device)
        return self._takes[id(m)]

    @property
    def is_current(self) -> bool:
        """Whether every parameter and every map is still the tensor, with the memory, of the table."""
        if not self._tensors:  # nothing to select: an operator that learns
            return True
        now = [t for owners in self._owners for t in owners.now()]
        return (
            all(map(operator.is_, now, self._tensors))
            and self._look() == self._seen
            and (not self.factors or self._fixed.holds(self.factors))
        )

    def _look(self) -> object:
        tensors = self._tensors
        return layouts.reader.read([local(t) for t in tensors] if self._sharded else tensors)

    def apply(self) -> None:
        """Write the parameters of the covered pieces."""
        self.table()
        self.sums()


def not_for_select(piece: Piece) -> str:
    """Why a piece is more than a fixed selection; empty when it is one."""
    if any(is_learned(t) for m in piece.maps() for t in m.factors().values()):
        return "learned factors"
    for maps in (piece.rows, piece.cols):
        for m in each(maps):
            if not isinstance(m, Identity | Selection):
                return f"{m!r}"
            if piece.keep and _old_units(m) is None:
                return "new units, which keep the target's weights, are not behind the old ones"
    if not isinstance(piece.depth, Identity | Selection | None):
        if max(map(len, _terms(piece.depth)), default=0) > A_FEW:
            return f"layers that are sums of more than {A_FEW}: {piece.depth!r}"
        if piece.keep or not (isinstance(piece.rows, Map) and isinstance(piece.cols, Map)):
            return "layers that are sums, and maps that differ by layer or keep the target's weights"
    return ""


def _terms(depth: Map) -> list[dict[int, float]]:
    """For each large layer the small ones it is the sum of, with their factors."""
    return [{j: d for j, d in enumerate(row) if d != 0} for row in depth.dense().tolist()]


def _old_units(m: Map) -> int | None:
    """How many units of a map are not new, if these are the first ones; None if they are not."""
    if not isinstance(m, Selection) or m.scale is None:
        return m.shape[0]
    old = m.scale != 0
    count = int(old.sum())
    return count if bool(old[:count].all()) else None


def _kept(item: Item, rows: Map, cols: Map, device: str) -> Item:
    """The corner of old units: the others keep what the target has."""
    height, width = _old_units(rows), _old_units(cols)
    assert height is not None and width is not None
    sides = (take(*_selected(m.block(0, n)), device=device) for m, n in ((rows, height), (cols, width)))
    return Item(item.source, item.out[:height, :width], next(sides), next(sides), item.scale)


def _selected(m: Map) -> tuple[Tensor | range, int, Tensor | None]:
    """Index, old size and scale."""
    new, old = m.shape
    return (m.index, old, m.scale) if isinstance(m, Selection) else (range(new), old, None)


def _uses(item: Item | sums.Sum) -> list[Use]:
    return uses(item) if isinstance(item, Item) else sums.uses(item)


def _tensors(m: Map) -> list[Tensor]:
    index = [m.index] if isinstance(m, Selection) else []
    return [*index, *m.factors().values()]
