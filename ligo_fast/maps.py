"""Linear maps along one axis, and the structure in them that makes them cheap to apply.

A map M has shape (n_large, n_small). Everything is built from four operations on a 2-D block `x`
whose rows are the axis (columns are whatever else there is, folded together):

    left(x)              M x              (n_small, m) -> (n_large, m)
    left_adjoint(g)      M^T g            (n_large, m) -> (n_small, m)
    accumulate(d, x, g)  d += dL/dM's factors, for G = dL/d(M x)
    block(a, b)          rows a..b of M, sharing its tensors: factors of a block are views

A gradient is itself a map of the same structure whose tensors hold the gradient of each factor.
Maps are plain objects over tensors (a factor may be a leaf parameter or any tensor).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor


class Map:
    """A linear map of shape (n_large, n_small) along one axis."""

    shape: tuple[int, int]
    grain = 1  # block boundaries must be multiples of this
    kept = 0  # how many leading rows are those of the identity
    selected = 0  # how many leading rows take one unit each; the others mix
    tensors: tuple[str, ...] = ()  # names of the tensors that are factors

    def factors(self) -> dict[str, Tensor]:
        """The tensors this map is made of, by name; those that are absent (None) are left out."""
        return {name: t for name in self.tensors if (t := getattr(self, name)) is not None}

    def replace(self, factors: Mapping[str, Tensor]) -> Map:
        """The same structure over other tensors; a factor that is not given becomes absent."""
        raise NotImplementedError

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """M x for x of shape (n_small, m), written into `out` (n_large, m) if given."""
        raise NotImplementedError

    def left_adjoint(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        """M^T g for g of shape (n_large, m), written into `out` (n_small, m) if given."""
        raise NotImplementedError

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        """Add d<g, M x>/d(factors) to the tensors of `grad`."""

    def block(self, start: int, stop: int) -> Map:
        """Rows start..stop of the map, over views of the same tensors."""
        raise NotImplementedError

    def cuts(self) -> list[int]:
        """Row numbers at which the structure changes, both ends included."""
        return [0, self.shape[0]]

    def flops(self, m: int) -> int:
        """Multiplications and additions of `left` on m columns."""
        return 0

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The whole matrix; for references, certificates and plots."""
        device = next((t.device for t in vars(self).values() if isinstance(t, Tensor)), None)
        cast = self.replace({k: t.detach().to(dtype) for k, t in self.factors().items()})
        return cast.left(torch.eye(self.shape[1], dtype=dtype, device=device))

    def transform(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Apply `fn` (a move or a cast) to the tensors that are not parameters."""
        for name, value in vars(self).items():
            if isinstance(value, Map):
                value.transform(fn)
            elif isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
                setattr(self, name, fn(value))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]})"


class Identity(Map):
    """The axis is unchanged."""

    def __init__(self, size: int) -> None:
        self.shape, self.kept, self.selected = (size, size), size, size

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
        return torch.eye(self.shape[0], dtype=dtype)


class Selection(Map):
    """At most one nonzero a row: row r is scale[r] times unit index[r]; a scale of 0 is a zero row.

    Args:
        index: (n_large,) int64, the unit each row is taken from.
        size: n_small.
        scale: (n_large,) or None for all ones.
    """

    tensors = ("scale",)

    def __init__(self, index: Tensor, size: int, scale: Tensor | None = None) -> None:
        self.shape = (index.numel(), size)
        self.index, self.scale, self.selected = index, scale, index.numel()
        n = index.numel()
        start = int(index[0]) if n else 0
        # a run of consecutive units is a slice, which costs no gather
        run = torch.equal(index, torch.arange(start, start + n, device=index.device))
        self.start: int | None = start if run else None

    @staticmethod
    def run(
        start: int,
        stop: int,
        size: int,
        scale: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Selection:
        """Units start..stop in their order: known here, where finding it out would wait for the device."""
        new = object.__new__(Selection)
        new.shape, new.start, new.scale = (stop - start, size), start, scale
        new.selected = stop - start
        new.index = torch.arange(start, stop, device=device)
        return new

    def replace(self, factors: Mapping[str, Tensor]) -> Selection:
        new = object.__new__(Selection)
        new.shape, new.index, new.start = self.shape, self.index, self.start
        new.selected = self.selected
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
            grad.scale += (g * self._take(x)).sum(1)

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
        kept = self._scaled(g[:n])
        return (
            torch.addmm(kept, self.C.t(), g[n:])
            if out is None
            else torch.addmm(kept, self.C.t(), g[n:], out=out)
        )

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        assert isinstance(grad, PrefixDiagonal)
        n = self.shape[1]
        add_product_(grad.C, g[n:], x)
        if grad.diag is not None:
            grad.diag += (g[:n] * x).sum(1)

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


class Kron(Map):
    """A (x) B on a product axis: unit (a, b) sits at row a * len(B) + b.

    `Kron(H, Identity(head_dim))` mixes whole heads and keeps the rotary pairs inside each.
    """

    def __init__(self, A: Map, B: Map) -> None:
        self.A, self.B = A, B
        self.shape = (A.shape[0] * B.shape[0], A.shape[1] * B.shape[1])
        self.grain = A.grain * B.shape[0]
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
    return m if isinstance(m, Selection) else Selection(torch.arange(m.shape[0]), m.shape[1])


def row_scale(m: Selection, like: Tensor) -> Tensor:
    """The scale of each row, in the dtype of `like`; ones if the map has none."""
    return like.new_ones(m.shape[0]) if m.scale is None else m.scale.to(like)
