"""Depth by hand, as passthrough merges do it: the source layer of every target layer, written out."""

from __future__ import annotations

import re

import torch

from ..axes import Context, Family
from ..errors import GrowthError
from ..maps import Map, Selection

SPAN = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


def read_layers(text: str) -> list[int] | None:
    """`"0-11,4-15"` -> 0 .. 11, 4 .. 15, both ends included; None for text that is no such list.

    Raises:
        GrowthError: for a span that runs backwards.
    """
    layers: list[int] = []
    for part in text.split(","):
        span = SPAN.fullmatch(part.strip())
        if span is None:
            return None
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            raise GrowthError(f"axis layer: {part.strip()} in layers {text!r} runs backwards")
        layers += range(first, last + 1)
    return layers


class Chosen:
    """The depth method that a list of layers stands for."""

    def __init__(self, layers: list[int]) -> None:
        self.layers = layers

    def __call__(self, family: Family, context: Context) -> Map:
        """Layer l is source layer `layers[l]`."""
        if len(self.layers) != family.large:
            raise GrowthError(f"axis layer: {len(self.layers)} layers chosen, the target has {family.large}")
        if max(self.layers) >= family.small:
            raise GrowthError(
                f"axis layer: layer {max(self.layers)} chosen, the source has layers 0 to {family.small - 1}"
            )
        return Selection(torch.tensor(self.layers), family.small)
