"""Running an operator on its two models: the kernels do what they cover, torch does the rest."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .bound import Bound
from .compiled import Compiled
from .compute import backend_torch
from .compute.backend_select import Plan as SelectPlan
from .compute.backends import PiecePlan
from .compute.blend import Workspace
from .compute.gradient_maps import gradient_maps, make_gradients
from .errors import GrowthError
from .models.modes import no_autocast, no_inference
from .native.layouts import GIVEN
from .processes.balance import Task, balance
from .processes.distributed import Bucket
from .processes.dtensors import is_sharded
from .processes.lend import GradientLoan, ProductLoan
from .processes.sharded import Part
from .processes.team import Team, together
from .residual import add_noise
from .tensors import grow_piece
from .training.factors import check_learns
from .unchanged import Snapshot

if TYPE_CHECKING:
    from .operator import GrowthOperator


class Execution:
    """What an operator keeps from call to call: a plan of launches, a workspace, what was written last."""

    def __init__(self, op: GrowthOperator) -> None:
        self.bound = Bound(op)
        self.compiled = Compiled(self.bound)
        self.lock = threading.RLock()  # one workspace is for one call at a time
        self.written, self.workspace = Snapshot(), Workspace()
        self.tasks: dict[tuple[Team, bool], list[Task]] = {}  # for the pull-back, or not

    @property
    def op(self) -> GrowthOperator:
        """The operator, which owns this."""
        return self.bound.op

    def bind(self) -> Execution:
        """Look at the models now; a copy does so when it is used, as its models are not there yet."""
        self.bound.look()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"op": self.op}  # a copy has tensors of its own: addresses and marks mean nothing to it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["op"])  # type: ignore[misc]

    def free(self) -> None:
        """Give back the memory that calls work in, until the next one."""
        self.workspace.free()
        self.compiled.free()

    def apply(self) -> None:
        """Write the large parameters; raises on every rank before anything is written on any."""
        op, plan = self.op, self.compiled.ready()
        if plan is not None and plan.look():
            if self.compiled.selection is not None:
                self.compiled.selection.apply()
            plan.apply()
            return
        # set_grad_enabled(False): no_grad() takes 2 us more
        with no_autocast(op.device), no_inference(), torch.set_grad_enabled(False):
            self._apply(op)

    def _apply(self, op: GrowthOperator) -> None:
        with together(op.team):
            for m in self.bound.gathering:
                m.reshard()
            plans, rest = self.compiled.plans()
        noisy = self.bound.parts if op.growth.noise else []
        if not rest and not noisy and not self.bound.is_sharded:
            for plan in plans:
                plan.apply()
            return
        views = self.bound.views()
        # the processes agree before anything is written
        loan = ProductLoan(*self._loan(pulling=False))
        for plan in plans:
            plan.apply()
        loan.begin(views.sources)
        self.workspace.factors.clear()  # they may have changed since
        for number in loan.order(rest):
            piece = loan.piece(number)
            sources = views.sources(piece or self.bound.parts[number].whole)  # fetched by all together
            if piece is None:
                continue
            grow_piece(views.outs(piece), sources, piece, op.dtype, self.workspace)
        self.workspace.factors.clear()
        loan.finish()
        for part in noisy:
            sources = views.sources(part.whole)
            if part.piece is not None:
                add_noise(views.outs(part.piece), sources, part, op.growth.noise, op._context, op.dtype)
        if sharded := [p for p in views.large.values() if is_sharded(p)]:
            torch.autograd.graph.increment_version(sharded)  # their parts were written: they do not count it
        if rest or noisy:
            self.written = Snapshot(self.bound.involved())

    def pullback(self) -> None:
        """Add to the factors' gradients, which are made where there are none; over all ranks, if several."""
        op, plan = self.op, self.compiled.ready(pulling=True)
        if plan is not None and plan.look(pulling=True) & GIVEN:
            plan.pullback()
            return
        check_learns(op)
        with no_autocast(op.device), no_inference(), torch.set_grad_enabled(False):
            self._pullback(op)

    def _pullback(self, op: GrowthOperator) -> None:
        with together(op.team):
            large = self.bound.owners[1]
            if not _have_gradients(large) and not _have_gradients(large.now()):
                raise GrowthError(
                    "no parameter of the large model has a gradient: call loss.backward() first, on the very "
                    "model that the operator was made for, not a copy"
                )
            plans, rest = self.compiled.plans(pulling=True)
            if rest and (why := self.bound.unreadable()):
                raise GrowthError(why)
        if op.team is None:
            self._pull(plans, rest, rest)
            return
        views = self.bound.views()
        each = [views.weight(part.whole, op.team.size) for part in self.bound.parts]
        by_weight = {w: [n for n, other in enumerate(each) if other == w] for w in each}
        if op.streams:  # the small model is sent in the order of the weights
            named = zip(op.pieces, each, strict=True)
            op.team.compare({f"share of the gradient of {p.name}": str(w) for p, w in named})
        bucket, weights = Bucket(self.bound.factors()), sorted(by_weight)
        loan = GradientLoan(*self._loan(pulling=True))
        loan.begin(views.sources, views.outs if self._fresh() else None)
        for weight, following in zip(weights, [*weights[1:], 1.0], strict=True):
            self._pull(plans, rest, by_weight[weight], loan, weight)
            if weight != following:
                bucket.flat.mul_(weight / following)  # in the end each has its own weight
        loan.add_taken(views.sources, gradient_maps)
        op.team.sum_(bucket.flat)
        bucket.give()

    def _fresh(self) -> bool:
        """Whether the large model is what `apply` wrote, so that the pull-back may read it."""
        op = self.op
        return op._large_dtype == op.dtype and op.holder is None and self.written.holds(self.bound.involved())

    def _pull(
        self,
        plans: list[PiecePlan | SelectPlan],
        rest: Collection[int],
        numbers: Sequence[int],
        loan: GradientLoan | None = None,
        weight: float = 1.0,
    ) -> None:
        """This process's part of the factors' gradients, of some pieces, added to their `.grad`s."""
        make_gradients(self.bound.factors())
        for plan in plans:  # for models that are not sharded, whose pieces all weigh the same
            if isinstance(plan, PiecePlan):
                plan.pullback()
        if not rest and not self.bound.is_sharded:
            return
        views, fresh = self.bound.views(), self._fresh()
        chosen = [n for n in numbers if n in rest]
        for number in chosen if loan is None else loan.order(chosen):
            part = self.bound.parts[number]
            piece = part.piece if loan is None else loan.piece(number)
            sources = views.sources(piece or part.whole)  # fetched by all together
            given = [] if piece is None else views.grads(piece)
            if piece is not None:
                rows, cols = (
                    part.of_rows(gradient_maps(part.whole.rows)),
                    part.of_cols(gradient_maps(part.whole.cols)),
                )
                backend_torch.pullback_(
                    given, sources, piece.depth, piece.rows, piece.cols,
                    gradient_maps(piece.depth), rows, cols, piece.order, self.op.dtype,
                    grown=views.outs(piece) if fresh and not piece.keep else None, workspace=self.workspace,
                )  # fmt: skip
            if loan is not None:
                loan.send_rows_of(number, 0.0 if all(g is None for g in given) else weight)

    def _loan(self, pulling: bool) -> tuple[Team | None, list[Task], list[Part], Tensor]:
        """What a `Loan` is made of; all processes ask for it together."""
        op, like = self.op, torch.empty(0, dtype=self.op.dtype, device=self.op.device)
        if op.team is None or op.streams or not self.bound.is_sharded or op.device.type != "cpu":
            return op.team, [], self.bound.parts, like
        if (op.team, pulling) not in self.tasks:
            grown = op._large_dtype == op.dtype
            self.tasks[op.team, pulling] = balance(op.team, self.bound.parts, pulling, op.dtype, grown)
        return op.team, self.tasks[op.team, pulling], self.bound.parts, like


def _have_gradients(parameters: Iterable[Tensor | None]) -> bool:
    return any(p is not None and p.grad is not None for p in parameters)
