"""Growing tensors that go by the parameters' names: weights of files, optimizer moments, averages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .compute import backend_torch
from .compute.backend_select import Plan as SelectPlan
from .compute.backend_select import why_not_select
from .compute.blend import Workspace
from .native.select import Take
from .plan import Piece
from .processes.sharded import part_of
from .residual import keep_new
from .views import Views


@torch.no_grad()
def grow_tensors(
    pieces: Sequence[Piece],
    small: dict[str, Tensor],
    large: dict[str, Tensor],
    dtype: torch.dtype,
    takes: dict[int, Take] | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Write tensors under the parameters' names and in their shapes: weights of files, moments, averages.

    `dtype` is that of the maps and of the arithmetic. What the compiled selection covers is one call. Of
    sharded tensors each process writes its own part. Callers that come again keep `takes` and `workspace`.
    """
    views, workspace, covered = Views(small, large), workspace or Workspace(), frozenset[int]()
    parts = [part_of(piece, large).piece for piece in pieces]
    devices = {t.device for t in large.values()}
    if dtype == torch.float32 and not any(map(why_not_select, devices)):
        plan = SelectPlan(parts, small, large, takes)
        plan.apply()
        covered = plan.covered
    for number, (piece, whole) in enumerate(zip(parts, pieces, strict=True)):
        if number not in covered and piece is not None:
            grow_piece(views.outs(piece), views.sources(whole), piece, dtype, workspace)


def grow_piece(
    outs: list[Tensor], sources: list[Tensor], piece: Piece, dtype: torch.dtype, workspace: Workspace
) -> None:
    """One piece by torch, with what it keeps of the target."""
    old = [o.clone() for o in outs] if piece.keep else []
    backend_torch.grow_(outs, sources, piece.depth, piece.rows, piece.cols, piece.order, dtype, workspace)
    for out, before in zip(outs, old, strict=False):
        keep_new(out, before, piece)
