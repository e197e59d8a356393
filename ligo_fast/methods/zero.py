"""Layers that add nothing yet: exact on pre-norm models."""

import torch

from ..axes import Context, Family
from ..maps import Map, Selection
from . import depth
from .interpolate import interleaved


@depth("zero")
def zero(family: Family, context: Context) -> Map:
    """Copies between the old layers whose output projections are zero (LLaMA-Pro, Wu et al. 2024)."""
    index = interleaved(family.small, family.large)
    new = torch.cat([torch.zeros(1, dtype=torch.bool), index[1:] == index[:-1]])
    scale = (~new).double() if family.writes else None
    return Selection(index, family.small, scale)


@depth("identity")
def identity(family: Family, context: Context) -> Map:
    """The old layers first; new ones on top keep the target's own initial weights, output projections zero.

    (Net2Net's deeper net in its zero-gated form; index -1 leaves a layer as the target has it.)
    """
    index = torch.arange(family.large)
    new = index >= family.small
    if family.writes:
        return Selection(torch.where(new, 0, index), family.small, (~new).double())
    return Selection(torch.where(new, -1, index), family.small)
