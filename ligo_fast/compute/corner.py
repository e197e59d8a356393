"""What was mixed, read off what was grown: where both maps keep the old units, Y = U X V^T has X in a corner.

With U = [diag(u); C] and V = [diag(v); C'] the first o1 rows and i1 columns of Y (o2, i2) are
diag(u) X diag(v): X = sum_j D[l, j] W[j] is known without the small model, and where D has a left inverse,
so is every W[j].
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..maps import Identity, Kron, Map, PrefixDiagonal, Selection

SMALLEST = 1e-3  # of a diagonal that is divided by


def keeps_units(maps: Iterable[Map]) -> bool:
    """Whether every map (n_large, n_small) begins with the old units as they are; tells without waiting."""
    return all(
        isinstance(m, Identity)
        or (isinstance(m, PrefixDiagonal) and m.diag is None)
        or (isinstance(m, Kron) and isinstance(m.B, Identity) and keeps_units([m.A]))
        for m in maps
    )


def has_corner(maps: Iterable[Map]) -> bool:
    """Whether every map begins with a diagonal to divide by; the host may wait for the device."""
    diagonals = [_diagonal(m) for m in maps]
    return all(
        d is not None and (not isinstance(d, Tensor) or bool((d.abs() >= SMALLEST).all())) for d in diagonals
    )


def corner(y: Tensor, u: Map, v: Map) -> Tensor:
    """X (o1, i1) from Y (o2, i2) for maps with `has_corner`; in Y's memory where they keep the units."""
    x = y[: u.shape[1], : v.shape[1]]
    if isinstance(d := _diagonal(u), Tensor):
        x = x / d[:, None]
    return x / d if isinstance(d := _diagonal(v), Tensor) else x


def _diagonal(m: Map) -> Tensor | float | None:
    """What the first rows multiply the old units with: (n_small,), or 1.0; None where they mix them."""
    if isinstance(m, Identity):
        return 1.0
    if isinstance(m, PrefixDiagonal):
        return 1.0 if m.diag is None else m.diag.detach()
    if isinstance(m, Selection):
        n = m.shape[1]
        if m.shape[0] < n or not torch.equal(m.index[:n], torch.arange(n, device=m.index.device)):
            return None
        return 1.0 if m.scale is None else m.scale[:n].detach()
    if isinstance(m, Kron) and isinstance(m.B, Identity):  # whole heads
        each = _diagonal(m.A)
        return each.repeat_interleave(m.B.shape[0]) if isinstance(each, Tensor) else each
    return None
