"""Running an operator on its two models: the kernels do what they cover, torch does the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import backend_torch
from .backend_select import Plan as SelectPlan
from .backend_select import why_not_select
from .backends import PiecePlan, Tensors, why_not_triton
from .blend import Workspace
from .errors import GrowthError
from .maps import Map
from .plan import Piece
from .residual import add_noise, keep_new
from .unchanged import Snapshot

if TYPE_CHECKING:
    from .operator import GrowthOperator


class Views:
    """Views of the parameters of two models, or of tensors by their names, as pieces see them by layer."""

    def __init__(self, small: Tensors, large: Tensors) -> None:
        # looked up once; tied parameters under each of their names
        self.small, self.large = (
            dict(t.named_parameters(remove_duplicate=False)) if isinstance(t, nn.Module) else t
            for t in (small, large)
        )

    def sources(self, piece: Piece) -> list[Tensor]:
        return [piece.small_slot.of(self.small[n]) for n in piece.small]

    def outs(self, piece: Piece) -> list[Tensor]:
        return [piece.large_slot.of(self.large[n]) for n in piece.large]

    def grads(self, piece: Piece) -> list[Tensor | None]:
        grads = [self.large[n].grad for n in piece.large]
        return [None if g is None else piece.large_slot.of(g) for g in grads]


@torch.no_grad()
def grow_tensors(
    pieces: Sequence[Piece], small: dict[str, Tensor], large: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Write tensors that go with the parameters, under their names and in their shapes: moments, averages.

    `dtype` is that of the maps and of the arithmetic. What the compiled selection covers is one call.
    """
    views, workspace, covered = Views(small, large), Workspace(), set[int]()
    devices = {t.device for t in large.values()}
    if dtype == torch.float32 and not any(map(why_not_select, devices)):
        plan = SelectPlan(pieces, small, large)
        plan.apply()
        covered = plan.covered
    for number, piece in enumerate(pieces):
        if number not in covered:
            backend_torch.grow_(
                views.outs(piece), views.sources(piece), piece.depth, piece.rows, piece.cols, piece.order,
                dtype, workspace,
            )  # fmt: skip


class Execution:
    """What an operator keeps from call to call: a plan of launches, a workspace, what was written last."""

    def __init__(self, op: GrowthOperator) -> None:
        self.op = op
        self.written, self.workspace = Snapshot(), Workspace()
        self.plan: PiecePlan | None = None
        self.selection: SelectPlan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"op": self.op}  # a copy has tensors of its own: addresses and marks mean nothing to it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["op"])  # type: ignore[misc]

    def apply(self) -> None:
        """Write the large parameters; raises before anything is written."""
        op, plans, rest = self.op, *self._compiled()
        for plan in plans:
            plan.apply()
        if not rest:
            return
        views = Views(op.small, op.large)
        for number in rest:
            piece = op.pieces[number]
            outs, sources = views.outs(piece), views.sources(piece)
            old = [o.clone() for o in outs] if piece.keep else []
            backend_torch.grow_(
                outs, sources, piece.depth, piece.rows, piece.cols, piece.order, op.dtype, self.workspace
            )
            for out, before in zip(outs, old, strict=False):
                keep_new(out, before, piece)
            if op.growth.noise:
                rng = op._context.rng(f"noise/{number}")
                add_noise(outs, sources, piece, op.growth.noise, rng, op.dtype)
        self.written = Snapshot(self._involved())

    def pullback(self) -> None:
        """Add to the factors' gradients, which are made where there are none."""
        op, plans, rest = self.op, *self._compiled()
        for p in op.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for plan in plans:
            if isinstance(plan, PiecePlan):
                plan.pullback(list(op.parameters()))
        if not rest:
            return
        views = Views(op.small, op.large)
        fresh = op._large_dtype == op.dtype and self.written.holds(self._involved())
        for number in rest:
            piece = op.pieces[number]
            backend_torch.pullback_(
                views.grads(piece), views.sources(piece), piece.depth, piece.rows, piece.cols,
                _gradient(piece.depth), _gradient(piece.rows), _gradient(piece.cols), piece.order, op.dtype,
                grown=views.outs(piece) if fresh and not piece.keep else None, workspace=self.workspace,
            )  # fmt: skip

    def left_to_torch(self) -> list[int]:
        """Numbers of the pieces that nothing compiled covers."""
        return self._compiled()[1]

    def _compiled(self) -> tuple[list[PiecePlan | SelectPlan], list[int]]:
        """The plans, made anew when a parameter was replaced, and the numbers of the pieces left to torch."""
        op, plans, covered = self.op, list[PiecePlan | SelectPlan](), set[int]()
        covers = not op.growth.noise and op.dtype == torch.float32
        if covers and not why_not_select(op.device):
            if self.selection is None or not self.selection.is_current:
                self._check_unchanged()
                self.selection = SelectPlan(op.pieces, op.small, op.large)
            plans.append(self.selection)
            covered |= self.selection.covered
        if covers and not why_not_triton(op.device):
            if self.plan is None or not self.plan.is_current or self.plan.others != covered:
                self._check_unchanged()
                factors = list(op.parameters())
                self.plan = PiecePlan(op.pieces, op.small, op.large, factors, op.precision, covered)
            plans.append(self.plan)
            covered |= self.plan.covered
        rest = [n for n in range(len(op.pieces)) if n not in covered]
        if rest:
            self._check_unchanged()
        return plans, rest

    def _check_unchanged(self) -> None:
        op, large = self.op, Views(self.op.small, self.op.large).large
        for piece in op.pieces:
            for name in piece.large:
                p = large[name]
                is_now, was = (p.shape, p.dtype), (piece.large_shape, op._large_dtype)
                if is_now != was or p.device != op.device:
                    raise GrowthError(
                        f"parameter {name} is now {list(p.shape)} {p.dtype} on {p.device}; the operator was "
                        f"made for {list(piece.large_shape or [])} {op._large_dtype} on {op.device}"
                    )

    def _involved(self) -> Iterator[Tensor]:
        """All that the grown weights depend on, and the grown weights."""
        yield from self.op.small.parameters()
        yield from self.op.large.parameters()
        for piece in self.op.pieces:
            for m in piece.maps():
                yield from m.factors().values()


def _gradient(maps: backend_torch.Maps | None) -> Any:
    """Maps whose tensors are the `.grad`s of the learned factors; None where nothing is learned."""
    if maps is None:
        return None
    if not isinstance(maps, Map):
        each = [_gradient(m) for m in maps]
        return None if all(m is None for m in each) else each
    factors = maps.factors()
    learned = {k: t.grad for k, t in factors.items() if isinstance(t, nn.Parameter) and t.grad is not None}
    if not learned:
        return None
    # a fixed factor beside a learned one gets a scratch gradient
    return maps.replace({k: learned.get(k, torch.zeros_like(t)) for k, t in factors.items()})
