"""Controls: how much of a method's gain is not the method's."""

import torch

from ..axes import Axis, AxisMaps, Context, Family
from ..maps import Map, Selection
from . import depth, width


@width("random", fresh=True)
def random(axis: Axis, context: Context) -> AxisMaps:
    """The old block in its corner; every new row and column keeps the target's own initial weights."""
    index = torch.arange(axis.large)
    old = index < axis.small
    return AxisMaps(Selection(torch.where(old, index, 0), axis.small, old.double()))


@depth("random")
def random_layers(family: Family, context: Context) -> Map:
    """The old layers first; every new layer keeps the target's own initial weights."""
    index = torch.arange(family.large)
    return Selection(torch.where(index < family.small, index, -1), family.small)


@width("scratch", writes=False)
def scratch(axis: Axis, context: Context) -> AxisMaps:
    """Nothing is taken from the small model."""
    return random(axis, context)


@depth("scratch")
def scratch_layers(family: Family, context: Context) -> Map:
    """Nothing is taken from the small model."""
    return Selection(torch.full((family.large,), -1), family.small)
