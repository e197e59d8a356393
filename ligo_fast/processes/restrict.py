"""Some rows of a map, wherever they begin and end: what a process needs of U for its part of a parameter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..maps import Dense, Kron, Map, PrefixDiagonal, Selection


class Stacked(Map):
    """Maps of the same n_small, one below the other: rows that cross a boundary inside a map."""

    def __init__(self, parts: Sequence[Map]) -> None:
        self.parts = list(parts)
        self.starts = list(itertools.accumulate((p.shape[0] for p in parts), initial=0))
        self.shape = (self.starts[-1], parts[0].shape[1])
        self.grain = math.lcm(*(p.grain for p in parts))
        mixing = next((n for n, p in enumerate(parts) if p.selected < p.shape[0]), len(parts) - 1)
        self.selected = self.starts[mixing] + parts[mixing].selected
        self.fixed = sum(p.fixed for p in parts)
        self.here = all(p.here for p in parts)

    def _spans(self) -> Iterator[tuple[Map, int, int]]:
        yield from zip(self.parts, self.starts, self.starts[1:], strict=False)

    def factors(self) -> dict[str, Tensor]:
        return {f"{n}.{k}": t for n, p in enumerate(self.parts) for k, t in p.factors().items()}

    def replace(self, factors: Mapping[str, Tensor]) -> Stacked:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): t for k, t in factors.items() if k.startswith(prefix)}

        return Stacked([p.replace(part(f"{n}.")) for n, p in enumerate(self.parts)])

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            return torch.cat([p.left(x) for p in self.parts])
        for p, a, b in self._spans():
            p.left(x, out=out[a:b])
        return out

    def left_adjoint(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        total = g.new_zeros(self.shape[1], g.shape[1]) if out is None else out.zero_()
        for p, a, b in self._spans():
            _add_adjoint(total, p, g[a:b])
        return total

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        assert isinstance(grad, Stacked)
        for (p, a, b), d in zip(self._spans(), grad.parts, strict=True):
            p.accumulate(d, x, g[a:b])

    def block(self, start: int, stop: int) -> Map:
        return stacked(
            [
                p.block(max(start, a) - a, min(stop, b) - a)
                for p, a, b in self._spans()
                if max(start, a) < min(stop, b)
            ]
        )

    def cuts(self) -> list[int]:
        return sorted({a + c for p, a, _ in self._spans() for c in p.cuts()})

    def flops(self, m: int) -> int:
        return sum(p.flops(m) for p in self.parts)


def _add_adjoint(total: Tensor, m: Map, g: Tensor) -> None:
    """total += M^T g."""
    if isinstance(m, Dense):
        total.addmm_(m.M.t(), g)
    elif isinstance(m, Selection) and m.start is not None:
        rows = total[m.start : m.start + m.shape[0]]
        rows.add_(g) if m.scale is None else rows.addcmul_(g, m.scale[:, None])
    else:
        total.add_(m.left_adjoint(g))


def restrict(m: Map, start: int, stop: int) -> Map:
    """Rows start..stop of a map, over views of the same tensors; unlike `Map.block` wherever they are cut."""
    if (start, stop) == (0, m.shape[0]):
        return m
    if isinstance(m, Kron):
        return stacked(list(_of_kron(m, start, stop)))
    if isinstance(m, PrefixDiagonal) and start == 0 and stop > m.shape[1]:
        return PrefixDiagonal(m.C[: stop - m.shape[1]], m.diag)  # the old units stay a prefix
    cuts = [start, *(c for c in m.cuts() if start < c < stop), stop]
    return stacked([m.block(a, b) for a, b in itertools.pairwise(cuts)])


def _of_kron(m: Kron, start: int, stop: int) -> Iterator[Map]:
    """A piece of a group of B's rows, whole groups, a piece of a group."""
    size = m.B.shape[0]
    first, last = -(-start // size), stop // size  # the whole groups
    if first > last:  # inside one group
        yield Kron(restrict(m.A, last, first), restrict(m.B, start - last * size, stop - last * size))
        return
    if start < first * size:
        yield Kron(restrict(m.A, first - 1, first), restrict(m.B, start - (first - 1) * size, size))
    if first < last:
        whole = restrict(m.A, first, last)
        parts = whole.parts if isinstance(whole, Stacked) else [whole]
        yield from (Kron(p, m.B) for p in parts)
    if last * size < stop:
        yield Kron(restrict(m.A, last, last + 1), restrict(m.B, 0, stop - last * size))


def stacked(parts: Sequence[Map]) -> Map:
    """Maps one below the other."""
    return parts[0] if len(parts) == 1 else Stacked(parts)
