"""Maps of a product axis (heads times head_dim, say) from those of its factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from .base import Map
from .structured import Identity, Selection


class Kron(Map):
    """A (x) B on a product axis: unit (a, b) sits at row a * len(B) + b.

    `Kron(H, Identity(head_dim))` mixes whole heads and keeps the rotary pairs inside each.
    """

    def __init__(self, A: Map, B: Map) -> None:
        self.A, self.B = A, B
        self.shape = (A.shape[0] * B.shape[0], A.shape[1] * B.shape[1])
        self.grain, self.least = A.grain * B.shape[0], min(A.least, B.least)
        self.selected = A.selected * B.shape[0] if B.selected == B.shape[0] else 0

    def factors(self) -> dict[str, Tensor]:
        named = {f"A.{k}": t for k, t in self.A.factors().items()}
        return named | {f"B.{k}": t for k, t in self.B.factors().items()}

    def replace(self, factors: Mapping[str, Tensor]) -> Kron:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k[2:]: t for k, t in factors.items() if k.startswith(prefix)}

        return Kron(self.A.replace(part("A.")), self.B.replace(part("B.")))

    def _swap(self, x: Tensor, first: int, second: int) -> Tensor:
        """(first * second, m) -> (second, first * m), for the map that acts on `second`."""
        return x.reshape(first, second, -1).transpose(0, 1).reshape(second, -1)

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        (a2, a1), (b2, b1) = self.A.shape, self.B.shape
        if isinstance(self.B, Identity) and out is not None and out.is_contiguous():
            self.A.left(x.reshape(a1, -1), out=out.view(a2, -1))
            return out
        y = self.A.left(x.reshape(a1, -1))
        if not isinstance(self.B, Identity):
            y = self._swap(self.B.left(self._swap(y, a2, b1)), b2, a2)
        y = y.reshape(a2 * b2, x.shape[1])
        return y if out is None else out.copy_(y)

    def left_adjoint(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        (a2, _), (b2, b1) = self.A.shape, self.B.shape
        p = g.reshape(a2, -1)
        if not isinstance(self.B, Identity):
            p = self._swap(self.B.left_adjoint(self._swap(g, a2, b2)), b1, a2)
        x = self.A.left_adjoint(p.reshape(a2, -1)).reshape(self.shape[1], g.shape[1])
        return x if out is None else out.copy_(x)

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        assert isinstance(grad, Kron)
        (a2, a1), (b2, b1) = self.A.shape, self.B.shape
        p = g.reshape(a2, -1)
        if not isinstance(self.B, Identity):
            inner = self._swap(self.A.left(x.reshape(a1, -1)), a2, b1)
            swapped = self._swap(g, a2, b2)
            self.B.accumulate(grad.B, inner, swapped)
            p = self._swap(self.B.left_adjoint(swapped), b1, a2)
        self.A.accumulate(grad.A, x.reshape(a1, -1), p.reshape(a2, -1))

    def block(self, start: int, stop: int) -> Map:
        inner = self.B.shape[0]
        if start % inner or stop % inner:
            raise ValueError(f"rows {start}..{stop} cut through a group of {inner}")
        a = self.A.block(start // inner, stop // inner)
        run = a.start if isinstance(a, Selection) and a.scale is None else None
        if run is not None and isinstance(self.B, Identity):  # whole groups, as they were
            first, device = run * inner, cast(Selection, a).index.device
            return Selection.run(first, first + stop - start, self.shape[1], None, device)
        return Kron(a, self.B)

    def cuts(self) -> list[int]:
        return [c * self.B.shape[0] for c in self.A.cuts()]

    def flops(self, m: int) -> int:
        return self.A.flops(self.B.shape[1] * m) + self.B.flops(self.A.shape[0] * m)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        a, b = self.A.dense(dtype), self.B.dense(dtype)
        device = a.device if isinstance(self.B, Identity) else b.device  # Identity has no tensor
        return torch.kron(a.to(device), b.to(device))


def kron(a: Map, b: Map) -> Map:
    """a (x) b in its simplest form: identities and selections stay what they are."""
    if isinstance(a, Identity) and isinstance(b, Identity):
        return Identity(a.shape[0] * b.shape[0])
    if isinstance(b, Identity) and b.shape == (1, 1):
        return a
    if isinstance(a, Identity | Selection) and isinstance(b, Identity | Selection):
        a, b = as_selection(a), as_selection(b)
        b_index = b.index.to(a.index.device)
        index = (a.index[:, None] * b.shape[1] + b_index[None, :]).flatten()
        scale = None
        if (like := a.scale if a.scale is not None else b.scale) is not None:
            scale = torch.outer(row_scale(a, like), row_scale(b, like)).flatten()
        return Selection(index, a.shape[1] * b.shape[1], scale)
    return Kron(a, b)


def as_selection(m: Identity | Selection) -> Selection:
    """An Identity or a Selection, as a Selection."""
    return m if isinstance(m, Selection) else Selection(torch.arange(m.shape[0], device="cpu"), m.shape[1])


def row_scale(m: Selection, like: Tensor) -> Tensor:
    """The scale of each row, in the dtype of `like`; ones if the map has none."""
    return like.new_ones(m.shape[0]) if m.scale is None else m.scale.to(like)
