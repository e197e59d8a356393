"""Maps as what the kernels read: matrices and scales in slots. Knows tensors, not models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.blend import NONE, Scale
from ..kernels.table import Matrix, Slots
from ..kernels.total import Total
from ..maps import Dense, Identity, Kron, Map, PrefixDiagonal, Selection, is_learned
from .waves import Wave


class Unsupported(Exception):
    """The kernels do not cover these maps or tensors; torch does."""


@dataclass(frozen=True)
class Side:
    """The map of one side: `kept` leading units times `scale`, then C (x) I_group of the old units."""

    kept: int
    scale: Scale
    C: Matrix | None
    group: int = 1  # head_dim, where C mixes whole heads
    factors: tuple[Tensor | None, Tensor | None] = (None, None)  # C and scale, where learned

    @property
    def new(self) -> int:
        return 0 if self.C is None else self.C.shape[0] * self.group

    def flops(self, m: int) -> int:
        return 0 if self.C is None else 2 * self.C.shape[0] * self.C.shape[1] * self.group * m


class Depth(NamedTuple):
    """D as a matrix (L2, L1), and the tensor it is if that may be learned."""

    matrix: Matrix
    factor: Tensor | None
    is_identity: bool


class Lowering:
    """Turns maps into matrices and scales; remembers which slot holds which tensor.

    Args:
        learned: the factors whose gradient is wanted.
    """

    def __init__(self, slots: Slots, learned: Sequence[Tensor]) -> None:
        self.slots = slots
        self.fixed: list[Tensor] = []  # tensors made here that the tables point to
        self.slot_of: dict[int, int] = {}
        self.constants: dict[tuple[int, int], Depth] = {}  # depth maps that are not learned
        self.learned = {id(t) for t in learned}
        self.sums: dict[int, int] = {}  # id of a learned factor -> slot of its partial sums
        self.totals: dict[int, tuple[Tensor, int]] = {}  # that slot -> factor, group

    def add(self, tensor: Tensor) -> int:
        if id(tensor) not in self.slot_of:
            self.slot_of[id(tensor)] = self.slots.add(tensor)
        return self.slot_of[id(tensor)]

    def _factor(self, t: Tensor) -> int:
        dense = t.dim() == 1 or self.learns(t)  # `totals` writes the gradient of a learned one in order
        if t.dtype != torch.float32 or (dense and not t.is_contiguous()):
            raise Unsupported(f"a factor of {t.dtype} and strides {t.stride()}")
        return self.add(t)

    def learns(self, factor: Tensor | None) -> bool:
        """Whether the gradient of a factor is wanted."""
        return factor is not None and id(factor) in self.learned

    def sums_slot(self, factor: Tensor | None, group: int = 1) -> int | None:
        """The slot of a learned factor's partial sums; None for one that is not learned."""
        if factor is None or not self.learns(factor):
            return None
        slot = self.sums[id(factor)]
        self.totals.setdefault(slot, (factor, group))
        return slot

    def side(self, m: Map) -> Side:
        if isinstance(m, Identity):
            return Side(m.shape[1], NONE, None)
        group, inner = 1, m
        while isinstance(inner, Kron) and isinstance(inner.B, Identity):
            group, inner = group * inner.B.shape[0], inner.A
        if isinstance(inner, PrefixDiagonal):
            c, scale = inner.C, NONE
            if inner.diag is not None:
                scale = Scale(self._factor(inner.diag), 0, group)
            kept = inner.shape[1] * group
        elif isinstance(inner, Dense):
            c, kept, scale = inner.M, 0, NONE
        else:
            raise Unsupported(f"{inner!r}")
        matrix = None
        if c.numel():
            slot = self._factor(c)
            matrix = replace(Matrix.of(c, slot, c), lead=self.slots.lead(slot))
        if matrix is not None and not (matrix.runs(0) or matrix.runs(1)):
            raise Unsupported(f"a factor of strides {c.stride()}")
        diag = inner.diag if isinstance(inner, PrefixDiagonal) else None
        return Side(kept, scale, matrix, group, (c, diag))

    def depth(self, m: Map | None, layers: int) -> Depth:
        """The map of the layers; None leaves them as they are."""
        if isinstance(m, Dense):
            return Depth(Matrix.of(m.M, self._factor(m.M), m.M), m.M, False)
        if m is not None and not isinstance(m, Identity | Selection):
            raise Unsupported(f"depth {m!r}")
        if isinstance(m, Selection) and m.scale is not None and (self.learns(m.scale) or is_learned(m.scale)):
            raise Unsupported("a learned scale of layers")  # a frozen one, too: it may be written to
        key = (id(m), layers)
        if key not in self.constants:
            d = (Identity(layers) if m is None else m).dense(torch.float32)
            as_is = d.shape == (layers, layers) and torch.equal(d, torch.eye(layers, device="cpu").to(d))
            d = d.to(self.slots.device).contiguous()
            self.fixed.append(d)
            self.constants[key] = Depth(Matrix.of(d, self.add(d), d), None, as_is)
        return self.constants[key]


def totals(wave: Wave, to: Lowering, grad_slot: dict[int, int]) -> list[Total]:
    """How the partial sums of a wave are added to the factors' gradients."""
    result = []
    for slot, count in wave.sums.items():
        factor, group = to.totals[slot]
        result.append(Total(grad_slot[id(factor)], 0, slot, 0, factor.numel(), count, group))
    return result
