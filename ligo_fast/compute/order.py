"""In which order a family's products and its mixing of layers are done; `backend_torch` says why."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import GrowthError
from ..maps import Identity, Map, Selection

ROWS_BONUS = 1.1  # what whole rows are worth: files and memory take them better than columns

Maps = Map | Sequence[Map]  # one map for all layers, or one per source or per target layer


def per_layer(maps: Maps, layers: int) -> list[Map]:
    """One for each layer."""
    return [maps] * layers if isinstance(maps, Map) else list(maps)


def each(maps: Maps | None) -> list[Map]:
    """The maps there are: one for all layers, or one for each."""
    return [] if maps is None else [maps] if isinstance(maps, Map) else list(maps)


def first(maps: Maps) -> Map:
    """One whose sizes and structure are those of all layers."""
    return maps if isinstance(maps, Map) else maps[0]


def rows_first(sources: int, rows: Maps, cols: Maps) -> bool:
    """Whether U before V needs no, or hardly, more FLOPs than V before U, whose blocks are columns."""
    u, v = first(rows), first(cols)
    if not (u.here and v.here):  # what comes from elsewhere are first products
        return v.here
    (o2, o1), (i2, i1) = u.shape, v.shape
    rows_first = u.flops(sources * i1) + v.flops(sources * o2)
    return rows_first <= ROWS_BONUS * (v.flops(sources * o1) + u.flops(sources * i2))


def is_width_first(depth: Map | None, rows: Maps, cols: Maps, order: str) -> bool:
    """The order of the products and the depth blend; see `backend_torch`.

    Raises:
        GrowthError: for maps per layer that fit neither the source nor the target layers.
    """
    if order not in ("auto", "width_first", "depth_first"):
        raise GrowthError(f"order={order!r} is none of 'auto', 'width_first', 'depth_first'")
    if depth is None:
        return True
    (l2, l1), shared = depth.shape, isinstance(rows, Map) and isinstance(cols, Map)
    if shared:
        return order == "width_first" or (order == "auto" and l1 <= l2)
    counts = {len(m) for m in (rows, cols) if not isinstance(m, Map)}
    if order == "auto" and l1 == l2:
        raise GrowthError(f"maps per layer with {l1} source and {l2} target layers: say which with order=")
    want = {"width_first": l1, "depth_first": l2}.get(order, l1 if counts == {l1} else l2)
    if counts != {want}:
        raise GrowthError(f"{sorted(counts)} maps per layer fit neither {l1} source nor {l2} target layers")
    return want == l1 if order == "auto" else order == "width_first"


def copies(depth: Identity | Selection) -> dict[int, tuple[list[int], Selection | None]]:
    """For each source layer that is used the large layers it becomes, and their D; None for one as it is."""
    if isinstance(depth, Identity):
        return {n: ([n], None) for n in range(depth.shape[0])}
    layers: dict[int, list[int]] = {}
    for layer, j in enumerate(depth.index.tolist()):
        layers.setdefault(j, []).append(layer)
    made: dict[int, tuple[list[int], Selection | None]] = {}
    for j, into in layers.items():
        scale = None if depth.scale is None else depth.scale[into]
        plain = len(into) == 1 and scale is None
        index = torch.zeros(len(into), dtype=torch.int64, device=depth.index.device)
        made[j] = into, None if plain else Selection(index, 1, scale)
    return made
