"""Interpolation (Chang et al. 2017): every layer followed by copies of itself."""

import torch

from ..axes import Context, Family
from ..maps import Map, Selection
from . import depth


def interleaved(small: int, large: int) -> torch.Tensor:
    """Source layer floor(l L1 / L2) of each target layer l."""
    return torch.arange(large) * small // large


@depth("interpolate")
def interpolate(family: Family, context: Context) -> Map:
    """Layer l is source layer floor(l L1 / L2)."""
    return Selection(interleaved(family.small, family.large), family.small)
