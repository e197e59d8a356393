"""Copying: new units repeat old ones in turn, and nothing is rescaled (StackBERT's and G_stack's width)."""

import torch

from ..axes import Axis, AxisMaps, Context
from ..maps import Selection
from . import width


@width("copy")
def copy(axis: Axis, context: Context) -> AxisMaps:
    """Row r is unit r mod n, producer and consumer alike; changes the function."""
    return AxisMaps(Selection(torch.arange(axis.large) % axis.small, axis.small))
