"""The grown weights as differentiable tensors: the functional way to learn an operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import ops
from .errors import GrowthError
from .processes.dtensors import is_sharded
from .processes.sharded import part_of
from .residual import add_noise
from .views import Views

if TYPE_CHECKING:
    from .operator import GrowthOperator


def grown_tensors(op: GrowthOperator) -> dict[str, Tensor]:
    """What `GrowthOperator.forward` gives.

    Raises:
        GrowthError: for sharded models, a small model that is not where the large one is, or a method that
            keeps some of the target's weights.
    """
    if any(map(is_sharded, (*op.small.parameters(), *op.large.parameters()))):
        raise GrowthError("op() gives whole weights; a sharded model is grown by apply_()")
    if op.streams:
        raise GrowthError("op() wants the small model where the large one is; apply_() brings it there")
    views = Views(op.small, op.large)
    out = {n: p.detach().to(op.dtype).clone() for n, p in op.large.named_parameters()}
    for piece in op.pieces:
        if piece.keep:
            raise GrowthError(f"method {op.growth.method!r} keeps target weights: only apply_() can")
        sources = views.sources(piece)
        stack = torch.stack([s.to(op.dtype) for s in sources])
        layers = ops.grow(stack, piece.depth, piece.rows, piece.cols, order=piece.order)
        grown = [layers[n] for n in range(len(layers))]  # which noise may be added to, in place
        if op.growth.noise:
            add_noise(grown, sources, part_of(piece, views.large), op.growth.noise, op._context, op.dtype)
        for name, y in zip(piece.large, grown, strict=True):
            piece.large_slot.of(out[name]).copy_(y)
    return {n: out[n].to(p.dtype) for n, p in op.large.named_parameters()}
