"""What one process does to grow a sharded model (FSDP2, tensor parallel, any DTensor): its own part.

Rows r and columns c of a grown parameter are the same growth with fewer rows of both maps,

    Y[l][r, c] = U[r] (sum_j D[l, j] W[j]) V[c]^T

so a process needs the small model and its own part of the large one, and nothing large ever moves. The rows
of a map are views of the same factors: what a process finds for dU[r], dV[c] and dD adds up over processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..compute.order import Maps, each, first
from ..errors import GrowthError
from ..maps import Map
from ..plan import Piece, Slot
from .dtensors import Window, is_sharded, windows
from .restrict import restrict


@dataclass(frozen=True)
class Part:
    """What this process does of a piece.

    Attributes:
        piece: the work on its own part of each parameter; None when it has none of it.
        whole: the piece of the whole model. rows, cols: the windows of it.
    """

    piece: Piece | None
    whole: Piece
    rows: Window
    cols: Window

    def of_rows(self, maps: Maps | None) -> Maps | None:
        """The rows of a map of the whole, or of its gradient, that belong to this part."""
        return _restrict(maps, self.rows)

    def of_cols(self, maps: Maps | None) -> Maps | None:
        return _restrict(maps, self.cols)


def part_of(piece: Piece, parameters: Mapping[str, Tensor]) -> Part:
    """This process's part of a piece of the whole model.

    Raises:
        GrowthError: for layers that are sharded differently, or a part that is not a block.
    """
    whole = [first(m).shape[0] for m in (piece.rows, piece.cols)]
    if not any(is_sharded(parameters[n]) for n in piece.large):
        return Part(piece, piece, (0, whole[0]), (0, whole[1]))
    mine, *others = (windows(n, parameters[n]) for n in piece.large)
    for name, other in zip(piece.large[1:], others, strict=True):
        if other != mine:
            raise GrowthError(
                f"parameter {name}: this rank has {other} of it, but {mine} of {piece.large[0]}; "
                "the layers of one parameter must be sharded alike"
            )
    shape, slot = parameters[piece.large[0]].shape, piece.large_slot
    have = [
        _flat(mine[lo:hi], shape[lo:hi], piece.large[0]) for lo, hi in ((0, slot.split), (slot.split, None))
    ]
    at = slot.start if slot.dim is not None else 0
    inner = []
    for dim, ((a, b), n) in enumerate(zip(have, whole, strict=True)):
        shift = at if dim == slot.dim else 0
        inner.append((min(max(a - shift, 0), n), min(max(b - shift, 0), n)))
    (ra, rb), (ca, cb) = inner
    if ra >= rb or ca >= cb:
        return Part(None, piece, *inner)
    if slot.dim is not None:
        lo = max(at - have[slot.dim][0], 0)
        a, b = inner[slot.dim]
        slot = Slot(slot.split, slot.dim, lo, lo + b - a)
    rows, cols = _restrict(piece.rows, inner[0]), _restrict(piece.cols, inner[1])
    assert rows is not None and cols is not None
    return Part(replace(piece, large_slot=slot, rows=rows, cols=cols), piece, *inner)


def _flat(have: Sequence[Window], shape: Sequence[int], name: str) -> Window:
    """The window of several dimensions seen as one."""
    start, stop = 0, 1
    for (a, b), n in zip(have, shape, strict=True):
        if (a, b) != (0, n) and stop - start > 1:
            raise GrowthError(f"parameter {name} is sharded along a dimension inside its rows or columns")
        start, stop = start * n + a, (stop - 1) * n + b
    return start, stop


def _restrict(maps: Maps | None, window: Window) -> Maps | None:
    if maps is None:
        return None
    made = {id(m): restrict(m, *window) for m in each(maps)}  # one for layers that share one
    return made[id(maps)] if isinstance(maps, Map) else [made[id(m)] for m in maps]
