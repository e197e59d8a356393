"""Running an operator on its two models: the kernels do what they cover, torch does the rest."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .compute import backend_torch
from .compute.backend_select import Plan as SelectPlan
from .compute.backend_select import why_not_select
from .compute.backends import PiecePlan, asked_for, why_not_triton
from .compute.blend import Workspace
from .compute.gradient_maps import gradient_maps
from .errors import GrowthError
from .models.owners import Owners
from .native.layouts import is_nowhere
from .plan import check_as_made, check_strides
from .processes.balance import Task, balance
from .processes.distributed import Bucket
from .processes.dtensors import gathering, is_sharded, local, placed
from .processes.lend import GradientLoan, ProductLoan
from .processes.sharded import Part, part_of
from .processes.team import Team, together
from .residual import add_noise
from .tensors import grow_piece
from .unchanged import Snapshot
from .views import Views

if TYPE_CHECKING:
    from .operator import GrowthOperator


class Execution:
    """What an operator keeps from call to call: a plan of launches, a workspace, what was written last."""

    def __init__(self, op: GrowthOperator) -> None:
        self._op = weakref.ref(op)  # a cycle would keep both models until Python's collector runs
        self.lock = threading.RLock()  # one workspace is for one call at a time
        self.written, self.workspace = Snapshot(), Workspace()
        self.plan: PiecePlan | None = None
        self.selection: SelectPlan | None = None
        self.tasks: dict[tuple[Team, bool], list[Task]] = {}  # for the pull-back, or not

    @property
    def op(self) -> GrowthOperator:
        """The operator, which owns this."""
        op = self._op()
        assert op is not None
        return op

    @cached_property
    def placed(self) -> dict[str, Any]:
        """How each parameter of the large model is laid out over processes."""
        return {n: placed(p) for n, p in self._large().items()}

    @cached_property
    def is_sharded(self) -> bool:
        """Whether any parameter of the large model is spread over processes."""
        return any(self.placed.values())

    @cached_property
    def parts(self) -> list[Part]:
        """What this process does of each piece."""
        parameters = self._large()
        return [part_of(piece, parameters) for piece in self.op.pieces]

    @cached_property
    def gathering(self) -> list[Any]:
        """The large model's modules that hold gathered parameters at times."""
        return gathering(self.op.large)

    @cached_property
    def owners(self) -> tuple[Owners, Owners]:
        """Where the parameters of both models are; a walk over their modules takes milliseconds."""
        names = (
            [n for n, _ in m.named_parameters(remove_duplicate=False)] for m in (self.op.small, self.op.large)
        )
        return Owners(self.op.small, next(names)), Owners(self.op.large, next(names))

    def _large(self) -> dict[str, nn.Parameter]:
        return dict(self.op.large.named_parameters(remove_duplicate=False))

    def bind(self) -> Execution:
        """Look at the large model now: later it must be laid out the same."""
        assert self.placed.keys() and self.parts is not None and self.owners
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"op": self.op}  # a copy has tensors of its own: addresses and marks mean nothing to it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["op"])  # type: ignore[misc]

    def free(self) -> None:
        """Give back the memory that calls work in, until the next one."""
        self.workspace.free()
        if self.plan is not None:
            self.plan.free()

    def apply(self) -> None:
        """Write the large parameters; raises on every rank before anything is written on any."""
        op = self.op
        with together(op.team):
            for m in self.gathering:
                m.reshard()
            plans, rest = self._compiled()
        noisy = self.parts if op.growth.noise else []
        if not rest and not noisy and not self.is_sharded:
            for plan in plans:
                plan.apply()
            return
        views = self._views()
        # the processes agree before anything is written
        loan = ProductLoan(*self._loan(pulling=False))
        for plan in plans:
            plan.apply()
        loan.begin(views.sources)
        self.workspace.factors.clear()  # they may have changed since
        for number in loan.order(rest):
            piece = loan.piece(number)
            sources = views.sources(piece or self.parts[number].whole)  # fetched by all together
            if piece is None:
                continue
            grow_piece(views.outs(piece), sources, piece, op.dtype, self.workspace)
        self.workspace.factors.clear()
        loan.finish()
        for number, part in enumerate(noisy):
            sources, seed = views.sources(part.whole), op._context.seed_of(f"noise/{number}")
            if part.piece is not None:
                add_noise(views.outs(part.piece), sources, part, op.growth.noise, seed, op.dtype)
        if sharded := [p for p in views.large.values() if is_sharded(p)]:
            torch.autograd.graph.increment_version(sharded)  # their parts were written: they do not count it
        if rest or noisy:
            self.written = Snapshot(self._involved())

    def pullback(self) -> None:
        """Add to the factors' gradients, which are made where there are none; over all ranks, if several."""
        op = self.op
        with together(op.team):
            large = self.owners[1]
            if not _have_gradients(large) and not _have_gradients(large.now()):
                raise GrowthError(
                    "no parameter of the large model has a gradient: call loss.backward() first, on the very "
                    "model that the operator was made for, not a copy"
                )
            plans, rest = self._compiled(pulling=True)
            if rest and (why := self._unreadable()):
                raise GrowthError(why)
        if op.team is None:
            self._pullback(plans, rest, rest)
            return
        views = self._views()
        each = [views.weight(part.whole, op.team.size) for part in self.parts]
        by_weight = {w: [n for n, other in enumerate(each) if other == w] for w in each}
        if op.streams:  # the small model is sent in the order of the weights
            named = zip(op.pieces, each, strict=True)
            op.team.compare({f"share of the gradient of {p.name}": str(w) for p, w in named})
        bucket, weights = Bucket(self._factors()), sorted(by_weight)
        loan = GradientLoan(*self._loan(pulling=True))
        loan.begin(views.sources, views.outs if self._fresh() else None)
        for weight, following in zip(weights, [*weights[1:], 1.0], strict=True):
            self._pullback(plans, rest, by_weight[weight], loan, weight)
            if weight != following:
                bucket.flat.mul_(weight / following)  # in the end each has its own weight
        loan.add_taken(views.sources, gradient_maps)
        op.team.sum_(bucket.flat)
        bucket.give()

    def _fresh(self) -> bool:
        """Whether the large model is what `apply` wrote, so that the pull-back may read it."""
        op = self.op
        return op._large_dtype == op.dtype and op.holder is None and self.written.holds(self._involved())

    def _pullback(
        self,
        plans: list[PiecePlan | SelectPlan],
        rest: Collection[int],
        numbers: Sequence[int],
        loan: GradientLoan | None = None,
        weight: float = 1.0,
    ) -> None:
        """This process's part of the factors' gradients, of some pieces, added to their `.grad`s."""
        factors = self._factors()
        grads: list[Any] = [factor.grad for factor in factors]
        for n, grad in enumerate(grads):
            if grad is None:
                grads[n] = factors[n].grad = torch.zeros_like(factors[n])
        for plan in plans:  # for models that are not sharded, whose pieces all weigh the same
            if isinstance(plan, PiecePlan):
                plan.pullback(grads)
        if not rest and not self.is_sharded:
            return
        views, fresh = self._views(), self._fresh()
        chosen = [n for n in numbers if n in rest]
        for number in chosen if loan is None else loan.order(chosen):
            part = self.parts[number]
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
        if op.team is None or op.streams or not self.is_sharded or op.device.type != "cpu":
            return op.team, [], self.parts, like
        if (op.team, pulling) not in self.tasks:
            grown = op._large_dtype == op.dtype
            self.tasks[op.team, pulling] = balance(op.team, self.parts, pulling, op.dtype, grown)
        return op.team, self.tasks[op.team, pulling], self.parts, like

    def _views(self) -> Views:
        small, large = (dict(zip(o.names, o.now(), strict=True)) for o in self.owners)
        return Views(small, large, self.op.fetch())

    def left_to_torch(self) -> list[int]:
        """Numbers of the pieces that nothing compiled covers."""
        return self._compiled()[1]

    def _compiled(self, pulling: bool = False) -> tuple[list[PiecePlan | SelectPlan], list[int]]:
        """The plans, made anew when a parameter no longer fits, and the numbers of the pieces left to torch.

        They are ready for one `apply`, or for one pull-back.
        """
        op = self.op
        plans: list[PiecePlan | SelectPlan] = []
        covered: frozenset[int] = frozenset()
        covers, asked = op.dtype == torch.float32 and not op.streams, asked_for()
        if covers and not why_not_select(op.device, asked):
            if self.selection is None or not self.selection.is_current:
                self._check_unchanged()
                self.selection = SelectPlan([part.piece for part in self.parts], op.small, op.large)
            if self.selection.covered:
                plans.append(self.selection)
                covered = self.selection.covered
        if covers and not self.is_sharded and not why_not_triton(op.device, asked):
            plan, factors = self.plan, self._factors()
            if plan is None or not plan.is_for(covered, factors) or not plan.bind(pulling):
                self._check_unchanged()
                self.plan = plan = PiecePlan(op.pieces, op.small, op.large, factors, op.precision, covered)
                if not plan.bind(pulling):
                    raise GrowthError(self._unreadable())
            plans.append(plan)
            covered = covered | plan.covered if covered else plan.covered
        if len(covered) == len(op.pieces):
            return plans, []
        self._check_unchanged()
        return plans, [n for n in range(len(op.pieces)) if n not in covered]

    def _factors(self) -> list[nn.Parameter]:
        """What is learned: `op.parameters()` that are not frozen, without its walk over modules."""
        return [p for p in self.op._parameters.values() if p is not None and p.requires_grad]

    def _check_unchanged(self) -> None:
        op = self.op
        if op.files is not None:
            op.files.check()
        small, large = (dict(zip(o.names, o.now(), strict=True)) for o in self.owners)
        for piece in op.pieces:
            for model, names, there in (("small", piece.small, small), ("large", piece.large, large)):
                if gone := [n for n in names if there.get(n) is None]:
                    raise GrowthError(f"parameter {gone[0]} of the {model} model is gone: wrapped or pruned?")
            for name in piece.large:
                check_as_made(piece, name, large[name], op._large_dtype, op.device)
                if placed(large[name]) != self.placed[name]:
                    raise GrowthError(
                        f"parameter {name} is now {_layout(placed(large[name]))}; the operator was made for "
                        f"{_layout(self.placed[name])}"
                    )
        check_strides(op.pieces, small, large)

    def _unreadable(self) -> str:
        """Which gradient cannot be read; empty when all can."""
        owners = self.owners[1]
        named = zip(owners.names, owners.now(), strict=True)
        grads = {n: p.grad for n, p in named if p is not None and p.grad is not None}
        odd = next((n for n, g in grads.items() if is_nowhere(local(g))), "")
        return (
            odd and f"the gradient of parameter {odd} cannot be read: it is sparse, or its memory was freed"
        )

    def _involved(self) -> Iterator[Tensor]:
        """All that the grown weights depend on, and the grown weights."""
        for owners in self.owners:
            yield from (p for p in owners.now() if p is not None)
        for part in self.parts:
            for m in part.whole.maps():
                yield from m.factors().values()


def _have_gradients(parameters: Iterable[Tensor | None]) -> bool:
    return any(p is not None and p.grad is not None for p in parameters)


def _layout(placement: Any) -> str:
    if placement is None:
        return "not sharded"
    mesh, placements, shape = placement
    return f"{list(shape)} of it on this rank, placed as {placements} over {mesh}"
