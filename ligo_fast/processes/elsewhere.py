"""A map of which another process makes the products, as `backend_torch` sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..maps import Map


@dataclass(frozen=True)
class Values:
    """Columns start..stop of a map's product, or of its gradient; `ready` waits until they are here."""

    start: int
    stop: int
    tensor: Tensor  # (rows, stop - start)
    ready: Callable[[], object]


class Elsewhere(Map):
    """Some rows M of a map of one source layer whose products another process makes, all or in part.

    M x is in `values` where `arrives`. In the pull-back g is put there: who made the product adds g x^T to
    the gradient.
    """

    here = False

    def __init__(self, inner: Map, values: Sequence[Values], arrives: bool) -> None:
        self.inner, self.values, self.arrives, self.shape = inner, values, arrives, inner.shape

    def factors(self) -> dict[str, Tensor]:
        return self.inner.factors()

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if not self.arrives:
            return self.inner.left(x, out)
        out = x.new_empty(self.shape[0], x.shape[1]) if out is None else out
        for v in self.values:
            v.ready()
            out[:, v.start : v.stop].copy_(v.tensor)
        return out

    def left_adjoint(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        return self.inner.left_adjoint(g, out)

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        for v in self.values:
            v.ready()
            v.tensor.copy_(g[:, v.start : v.stop])

    def block(self, start: int, stop: int) -> Map:
        values = [replace(v, tensor=v.tensor[start:stop]) for v in self.values]
        return Elsewhere(self.inner.block(start, stop), values, self.arrives)

    def flops(self, m: int) -> int:
        return 0 if self.arrives else self.inner.flops(m)
