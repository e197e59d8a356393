"""Stacking (StackBERT, Gong et al. 2019; G_stack, Du et al. 2024): the whole stack again and again."""

import torch

from ..axes import Context, Family
from ..maps import Map, Selection
from . import depth


@depth("stack")
def stack(family: Family, context: Context) -> Map:
    """Layer l is source layer l mod L1."""
    return Selection(torch.arange(family.large) % family.small, family.small)
