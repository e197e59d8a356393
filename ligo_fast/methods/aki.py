"""Advanced knowledge initialisation (bert2BERT, Chen et al., ACL 2022): new units from the layer above."""

from ..axes import Axis, AxisMaps, Context
from . import width
from .net2net import net2net


@width("aki", next_layer=True)
def aki(axis: Axis, context: Context) -> AxisMaps:
    """Net2Net's maps; rows of new units come from the next source layer. Changes the function.

    The depth method takes or mixes the layers that were widened so.
    """
    return net2net(axis, context)
