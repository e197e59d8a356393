"""Layers that add nothing yet: exact on pre-norm models."""

import torch

from ..axes import Context, Family
from ..maps import Map, Selection
from . import depth


@depth("zero")
def zero(family: Family, context: Context) -> Map:
    """Every (L1 / new)th layer is followed by a copy whose output projections are zero.

    (Block expansion, LLaMA-Pro, Wu et al. 2024: 4 -> 6 is 0 1 1* 2 3 3*.)
    """
    small, new = family.small, family.large - family.small
    copies = -(-torch.arange(1, new + 1) * small // new) - 1  # ceil(i L1 / new) - 1
    index = torch.cat([torch.arange(small), copies]).sort().values
    old = torch.cat([torch.ones(1, dtype=torch.bool), index[1:] != index[:-1]])
    return Selection(index, small, old.double() if family.writes else None)


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
