"""Whether what a method gave is a map of its axis: type, shape, indices, values; before anything uses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .axes import Axis, AxisMaps, Family, PerLayer
from .errors import GrowthError
from .growth import labelled
from .maps import Map, PrefixDiagonal, Selection


def check_axis(method: str, axis: Axis, made: Any) -> None:
    """Raises GrowthError, naming method, axis and numbers, for what are no maps of this axis."""
    where = f"method {method!r}, axis {axis.name}"
    layers = made.maps if isinstance(made, PerLayer) else [made]
    for maps in layers:
        if not isinstance(maps, AxisMaps):
            raise GrowthError(f"{where}: a {type(maps).__name__}, where AxisMaps are needed")
        for role in ("out", "into", "gain", "shift", "final_gain", "final_shift"):
            m = getattr(maps, role)
            if (m is not None and not isinstance(m, Map)) or (role == "out" and m is None):
                raise GrowthError(f"{where}: {role} is a {type(m).__name__}, where a Map is needed")
    for label, m in labelled(axis.name, made):
        _check(f"{where}: {label.removeprefix(axis.name + '/')}", m, (axis.large, axis.small), 0)


def check_family(method: str, family: Family, made: Any) -> None:
    """Raises GrowthError, naming method, family and numbers, for what is no map of its layers."""
    where = f"method {method!r}, axis layer: {family.name}"
    if not isinstance(made, Map):
        raise GrowthError(f"{where}: a {type(made).__name__}, where a Map is needed")
    _check(where, made, (family.large, family.small), -1)  # which leaves the target's layer as it is


def _check(where: str, m: Map, shape: tuple[int, int], lowest: int) -> None:
    if tuple(m.shape) != shape:
        raise GrowthError(
            f"{where} is {m.shape[0]} x {m.shape[1]}, the axis asks for {shape[0]} x {shape[1]}"
        )
    for part in _parts(m):
        if isinstance(part, Selection):
            _check_selection(where, part, lowest if part is m else 0)
        elif isinstance(part, PrefixDiagonal) and part.diag is not None:
            _check_length(where, "diag", part.diag, part.shape[1])
    for name, t in m.factors().items():
        if bad := t.numel() - int(torch.isfinite(t.detach()).sum()):
            raise GrowthError(f"{where}: {bad} of {t.numel()} values of {name} are NaN or infinite")


def _parts(m: Map) -> list[Map]:
    """The map, and those it is made of."""
    return [m, *(p for part in vars(m).values() if isinstance(part, Map) for p in _parts(part))]


def _check_selection(where: str, m: Selection, lowest: int) -> None:
    if m.index.dtype not in (torch.int64, torch.int32):
        raise GrowthError(f"{where}: the index is {m.index.dtype}, int64 is needed")
    if m.index.numel() and not (lowest <= int(m.index.min()) and int(m.index.max()) < m.shape[1]):
        raise GrowthError(
            f"{where}: indices from {int(m.index.min())} to {int(m.index.max())}, there are {lowest} to "
            f"{m.shape[1] - 1}"
        )
    if m.scale is not None:
        _check_length(where, "scale", m.scale, m.shape[0])


def _check_length(where: str, name: str, t: Tensor, n: int) -> None:
    if tuple(t.shape) != (n,):
        raise GrowthError(f"{where}: {name} has shape {tuple(t.shape)}, ({n},) is needed")
