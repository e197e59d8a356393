"""The type of every layer of a grown model (full or sliding attention): that of the layer it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..architectures import Architecture
from ..axes import Context, Family
from ..errors import GrowthError
from ..growth import depth_matrix
from ..maps import Map, Selection
from ..method_maps import MethodMaps
from .tables import parse, writes
from .target import with_values


def layer_types(config: Any) -> list[Any] | None:
    """What a config, or the content of a config.json, says of each layer's attention; None if nothing."""
    types = config.get("layer_types") if isinstance(config, dict) else getattr(config, "layer_types", None)
    return types if isinstance(types, list) and types else None


def grown_types(types: list[Any], depth: Iterable[Map], large: int) -> list[Any]:
    """A type for each of `large` layers, by the depth maps of all families.

    Raises:
        GrowthError: where source layers of several types are mixed into one, or new ones drawn.
    """
    if len(set(types)) == 1:
        return types[:1] * large
    origins = {tuple(_origins(m)) for m in depth}
    if len(origins) != 1 or -1 in (origin := next(iter(origins))):
        raise GrowthError(
            f"layer_types: the method mixes or draws layers, and the source's are of several types "
            f"({', '.join(sorted(map(str, set(types))))}): give the {large} layers' in the target's config"
        )
    return [types[j] for j in origin]


def with_layer_types(
    config: Any, architecture: Architecture, small: nn.Module, methods: MethodMaps, seed: int
) -> Any:
    """The target's config with the types that the depth method implies, where the source has any.

    Raises:
        GrowthError: see `grown_types`.
    """
    types, counts = layer_types(architecture.config(small)), architecture.read_sizes(small)
    source, target = counts["layer"], architecture.sizes["layer"].read(config)
    if types is None or len(types) != source or target < source:  # GrowthOperator says what is wrong
        return config
    context = Context(seed, (source, target))
    maps = (
        methods.of_family(Family(name, source, target, writes(parse(dims))), context)
        for name, dims in architecture.parameters.items()
        if "*" in name
    )
    return with_values(config, {"layer_types": grown_types(types, maps, target)})


def _origins(m: Map) -> list[int]:
    """The source layer of every target layer; -1 for a mixture, or a layer that is drawn."""
    if isinstance(m, Selection):
        return m.index.tolist()
    rows = depth_matrix(m)
    return [int(r.argmax()) if int((r != 0).sum()) == 1 else -1 for r in rows]
