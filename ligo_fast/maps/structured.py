"""The maps of a single axis, each with the structure that makes it cheap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import GrowthError
from .base import Map


class Identity(Map):
    """The axis is unchanged."""

    def __init__(self, size: int) -> None:
        self.shape = (size, size)
        self.kept = self.selected = self.fixed = size

    def replace(self, factors: Mapping[str, Tensor]) -> Identity:
        return self

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return x if out is None else out.copy_(x)

    def left_adjoint(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        return g if out is None else out.copy_(g)

    def block(self, start: int, stop: int) -> Map:
        n = self.shape[0]
        if (start, stop) == (0, n):
            return self
        return Selection.run(start, stop, n)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.eye(self.shape[0], dtype=dtype, device="cpu")


class Selection(Map):
    """At most one nonzero a row: row r is scale[r] times unit index[r]; a scale of 0 is a zero row.

    Args:
        index: (n_large,) int64, the unit each row is taken from; -1 in a D leaves the target's layer.
        size: n_small.
        scale: (n_large,) or None for all ones.

    Raises:
        GrowthError: for an index that is not among -1 .. n_small - 1.
    """

    tensors = ("scale",)

    def __init__(self, index: Tensor, size: int, scale: Tensor | None = None) -> None:
        self.shape = (index.numel(), size)
        self.index, self.scale, self.selected = index, scale, index.numel()
        n = index.numel()
        self.fixed = n if scale is None else 0
        start = int(index[0]) if n else 0
        self.least, most = map(int, index.aminmax()) if n else (0, -1)
        if self.least < -1 or most >= size:
            raise GrowthError(f"a selection of {size} units has indices {self.least} to {most}")
        # a run of consecutive units is a slice, which costs no gather
        run = torch.equal(index, torch.arange(start, start + n, device=index.device))
        self.start: int | None = start if run else None

    @staticmethod
    def run(
        start: int,
        stop: int,
        size: int,
        scale: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Selection:
        """Units start..stop in their order: known here, where finding it out would wait for the device."""
        new = object.__new__(Selection)
        new.shape, new.start, new.scale = (stop - start, size), start, scale
        new.selected = stop - start
        new.fixed = new.selected if scale is None else 0
        new.index, new.least = torch.arange(start, stop, device=device), start
        return new

    def replace(self, factors: Mapping[str, Tensor]) -> Selection:
        new = object.__new__(Selection)
        new.shape, new.index, new.start = self.shape, self.index, self.start
        new.selected, new.fixed, new.least = self.selected, self.fixed, self.least
        new.scale = factors.get("scale")
        return new

    def _take(self, x: Tensor) -> Tensor:
        if self.start is not None:
            return x.narrow(0, self.start, self.shape[0])
        return x.index_select(0, self.index.to(x.device))

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        y = self._take(x)
        if self.scale is not None:
            return torch.mul(y, self.scale[:, None], out=out)
        return y if out is None else out.copy_(y)

    def left_adjoint(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        g = g if self.scale is None else g * self.scale[:, None]
        out = g.new_zeros(self.shape[1], g.shape[1]) if out is None else out.zero_()
        return out.index_add_(0, self.index.to(g.device), g)

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        assert isinstance(grad, Selection)
        if grad.scale is not None:
            add_row_products_(grad.scale, g, self._take(x))

    def block(self, start: int, stop: int) -> Map:
        scale = None if self.scale is None else self.scale[start:stop]
        if self.start is not None:
            a = self.start
            return Selection.run(a + start, a + stop, self.shape[1], scale, self.index.device)
        return Selection(self.index[start:stop], self.shape[1], scale)


class Dense(Map):
    """Any matrix M of shape (n_large, n_small)."""

    tensors = ("M",)

    def __init__(self, M: Tensor) -> None:
        self.shape = (M.shape[0], M.shape[1])
        self.M = M

    def replace(self, factors: Mapping[str, Tensor]) -> Dense:
        return Dense(factors["M"])

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self.M @ x if out is None else torch.mm(self.M, x, out=out)

    def left_adjoint(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        return self.M.t() @ g if out is None else torch.mm(self.M.t(), g, out=out)

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        assert isinstance(grad, Dense)
        add_product_(grad.M, g, x)

    def block(self, start: int, stop: int) -> Map:
        return Dense(self.M[start:stop])

    def flops(self, m: int) -> int:
        return 2 * self.shape[0] * self.shape[1] * m


class PrefixDiagonal(Map):
    """[diag; C]: old units are kept (and scaled), new units are mixed from old ones.

    Args:
        C: (n_large - n_small, n_small).
        diag: (n_small,) or None for ones.
    """

    tensors = ("C", "diag")

    def __init__(self, C: Tensor, diag: Tensor | None = None) -> None:
        self.shape = (C.shape[0] + C.shape[1], C.shape[1])
        self.C, self.diag = C, diag
        self.kept, self.selected = C.shape[1] if diag is None else 0, C.shape[1]
        self.fixed = self.kept

    def replace(self, factors: Mapping[str, Tensor]) -> PrefixDiagonal:
        return PrefixDiagonal(factors["C"], factors.get("diag"))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.diag is None else x * self.diag[:, None]

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            return torch.cat([self._scaled(x), self.C @ x])
        n = self.shape[1]
        if self.diag is None:
            out[:n].copy_(x)
        else:
            torch.mul(x, self.diag[:, None], out=out[:n])
        torch.mm(self.C, x, out=out[n:])
        return out

    def left_adjoint(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        n = self.shape[1]
        if out is None:
            return torch.addmm(self._scaled(g[:n]), self.C.t(), g[n:])
        kept = g[:n] if self.diag is None else torch.mul(g[:n], self.diag[:, None], out=out)
        return torch.addmm(kept, self.C.t(), g[n:], out=out)

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        assert isinstance(grad, PrefixDiagonal)
        n = self.shape[1]
        add_product_(grad.C, g[n:], x)
        if grad.diag is not None:
            add_row_products_(grad.diag, g[:n], x)

    def block(self, start: int, stop: int) -> Map:
        n = self.shape[1]
        if (start, stop) == (0, self.shape[0]):
            return self
        if start >= n:
            return Dense(self.C[start - n : stop - n])
        if stop <= n:
            diag = None if self.diag is None else self.diag[start:stop]
            return Selection.run(start, stop, n, diag, self.C.device)
        raise ValueError(f"rows {start}..{stop} cross the boundary at {n}: cut there first")

    def cuts(self) -> list[int]:
        return [0, self.shape[1], self.shape[0]]

    def flops(self, m: int) -> int:
        return 2 * self.C.numel() * m


def add_row_products_(out: Tensor, g: Tensor, x: Tensor) -> None:
    """out[r] += <g[r], x[r]>; on a CPU in parts, so that the products stay in a core's own cache."""
    step = max((1 << 16) // max(1, g.shape[0]), 1) if g.device.type == "cpu" else max(g.shape[1], 1)
    first, *others = zip(g.split(step, 1), x.split(step, 1), strict=True)
    products = first[0] * first[1]
    for a, b in others:
        products[:, : a.shape[1]].addcmul_(a, b)
    out += products.sum(1)


def add_product_(out: Tensor, g: Tensor, x: Tensor, chunk: int = 1024) -> None:
    """out += g x^T. A small out is a long sum: in chunks it is several times faster and more accurate."""
    whole = g.shape[1] // chunk
    if whole < 8 or out.numel() > 1 << 14:
        out.addmm_(g, x.t())
        return
    n = whole * chunk
    a, b = (t[:, :n].unflatten(1, (whole, chunk)).transpose(0, 1) for t in (g, x))  # (whole, rows, chunk)
    out += torch.bmm(a, b.transpose(1, 2)).sum(0)
    if n < g.shape[1]:
        out.addmm_(g[:, n:], x[:, n:].t())
