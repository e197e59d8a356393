"""Net2Net widening (Chen et al., ICLR 2016), the function-preserving initialisation of bert2BERT (FPI)."""

import torch
from torch import Tensor

from ..axes import Axis, AxisMaps, Context
from ..maps import Selection
from . import width


def share(index: Tensor, size: int) -> AxisMaps:
    """Units repeated by `index`; each consumer divides by how often its unit occurs, so V^T U = I."""
    count = torch.bincount(index, minlength=size).double()
    return AxisMaps(Selection(index, size), Selection(index, size, 1 / count[index]))


@width("net2net")
def net2net(axis: Axis, context: Context) -> AxisMaps:
    """Old units kept, new ones repeat random old ones."""
    new = torch.randint(axis.small, (axis.large - axis.small,), generator=context.rng(axis.name))
    return share(torch.cat([torch.arange(axis.small), new]), axis.small)
