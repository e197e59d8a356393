"""Which compiled code does which of an operator's pieces: plans, made anew where they do not fit any more."""

from __future__ import annotations

import torch

from .bound import Bound
from .compute.backend_select import Plan as SelectPlan
from .compute.backend_select import why_not_select
from .compute.backends import PiecePlan, asked_for, why_not_triton
from .errors import GrowthError


class Compiled:
    """The plan of fixed selections, and that of the Triton kernels' launches."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.plan: PiecePlan | None = None
        self.selection: SelectPlan | None = None
        self.asked = ""  # what LIGO_FAST_BACKEND said when the plans were found to do all there is

    def ready(self, pulling: bool = False) -> PiecePlan | None:
        """The plan of launches, if it and the selection did all at the last call, and still do.

        Where the tensors of its own lie is left to ask.
        """
        plan, selection = self.plan, self.selection
        if plan is None or not self.asked or self.asked != asked_for() or self.bound.op.team is not None:
            return None
        if pulling:  # what is selected has no factors
            return plan if plan.is_for(plan.others, self.bound.factors()) else None
        return plan if selection is None or selection.is_current else None

    def plans(self, pulling: bool = False) -> tuple[list[PiecePlan | SelectPlan], list[int]]:
        """The plans, made anew when a parameter no longer fits, and the numbers of the pieces left to torch.

        They are ready for one `apply`, or for one pull-back.
        """
        op = self.bound.op
        plans: list[PiecePlan | SelectPlan] = []
        covered: frozenset[int] = frozenset()
        covers, asked, self.asked = op.dtype == torch.float32 and not op.streams, asked_for(), ""
        if covers and not why_not_select(op.device, asked):
            if self.selection is None or not self.selection.is_current:
                self.bound.check_unchanged()
                self.selection = SelectPlan([part.piece for part in self.bound.parts], op.small, op.large)
            if self.selection.covered:
                plans.append(self.selection)
                covered = self.selection.covered
        if covers and not self.bound.is_sharded and not why_not_triton(op.device, asked):
            plan, factors = self.plan, self.bound.factors()
            if plan is None or not plan.is_for(covered, factors) or not plan.bind(pulling):
                self.bound.check_unchanged()
                self.plan = plan = PiecePlan(op.pieces, op.small, op.large, factors, op.precision, covered)
                if not plan.bind(pulling):
                    raise GrowthError(self.bound.unreadable())
            plans.append(plan)
            covered = covered | plan.covered if covered else plan.covered
        if len(covered) == len(op.pieces):
            if plans[-1:] == [self.plan] and not self.bound.is_sharded and not op.growth.noise:
                self.asked = asked
            return plans, []
        self.bound.check_unchanged()
        return plans, [n for n in range(len(op.pieces)) if n not in covered]

    def left_to_torch(self) -> list[int]:
        """Numbers of the pieces that nothing compiled covers."""
        return self.plans()[1]

    def free(self) -> None:
        """Give back the memory that launches work in, until the next one."""
        if self.plan is not None:
            self.plan.free()
