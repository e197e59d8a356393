"""From a pair of methods to the maps of every axis and every family of a pair of models."""

from __future__ import annotations

from typing import Any

import torch

from .axes import Axis, AxisMaps, Context, Family, product
from .map_checks import check_axis, check_family
from .maps import Identity, Map, Selection
from .methods import Method, split_options
from .plan import Grown


class MethodMaps:
    """A width and a depth method with their options.

    Raises:
        GrowthError: for an option that neither takes.
    """

    def __init__(self, pair: tuple[Method, Method], options: dict[str, Any]) -> None:
        self.width, self.depth = pair
        self.width_options, self.depth_options = split_options(pair, options)

    def of_axis(self, axis: Axis, context: Context) -> Grown:
        """The width method's maps; those of a composed axis are products of its factors', or the method's."""
        if not axis.grows:
            return AxisMaps(Identity(axis.small))
        if axis.factors and not self.width.composed:
            return product(axis, [self._of_basic(f, context) for f in axis.factors])
        return self._of_basic(axis, context)

    def _of_basic(self, axis: Axis, context: Context) -> AxisMaps:
        """A training-free method gives every tagged copy of an axis the same."""
        if not axis.grows:
            return AxisMaps(Identity(axis.small))
        known = context.maps
        if self.width.composed or axis.name not in known:
            made = self.width.fn(axis, context, **self.width_options)
            check_axis(self.width.name, axis, made)
            known[axis.name] = made
        return known[axis.name]

    def of_family(self, family: Family, context: Context) -> Map:
        """The depth method's map; the identity, as a selection, where the number of layers stays."""
        if family.small == family.large and not self.depth.reorders:
            return Selection(torch.arange(family.large), family.small)
        made: Map = self.depth.fn(family, context, **self.depth_options)
        check_family(self.depth.name, family, made)
        return made
