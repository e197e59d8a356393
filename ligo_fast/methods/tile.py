"""Tiling by whole multiples (HyperCloning, Samragh et al. 2024): W' = tile(W) / n, exact with any norm."""

import torch

from ..axes import Axis, AxisMaps, Context
from ..errors import GrowthError
from . import width
from .net2net import share


def tiled(axis: Axis) -> torch.Tensor:
    """Unit r mod n for each row r."""
    return torch.arange(axis.large) % axis.small


@width("tile")
def tile(axis: Axis, context: Context) -> AxisMaps:
    """Raises GrowthError unless the axis grows by a whole multiple."""
    if axis.large % axis.small:
        raise GrowthError(
            f"axis {axis.name}: tile needs a whole multiple, {axis.large} is {axis.large / axis.small:.3g} "
            f"times {axis.small}; net2net or pad take any width"
        )
    return share(tiled(axis), axis.small)
