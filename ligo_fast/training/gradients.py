"""The factors' gradients from those of the large model: at a step or, released, inside backward."""

from __future__ import annotations

import torch

from ..errors import GrowthError
from ..models.owners import Owners
from ..operator import GrowthOperator
from ..processes.distributed import mean_
from ..processes.dtensors import reshard
from ..processes.team import together
from .factors import learned_factors
from .released import GradientRelease


class FactorGradients:
    """Where an optimizer of the factors has its gradients from.

    Attributes:
        sources: the large model's parameters by name, as they were when this was made.
        shown: the module whose parameters' gradients are there to read and clip before a step.
        release: what consumes the large model's gradients inside backward, if something does.
    """

    def __init__(self, op: GrowthOperator, release: bool) -> None:
        self.op, self.shown = op, op if release else op.large
        if op.team is not None:
            reshard(op.large)  # a forward pass leaves the root's parameters gathered: not those to come
        self.sources = dict(op.large.named_parameters())
        self._owners = Owners(op.large, self.sources)
        self.release = GradientRelease(op) if release else None

    def pull_back(self) -> None:
        """Complete the factors' gradients; over all ranks, if several.

        Raises:
            GrowthError: for a parameter that was replaced, or without any gradient; on every rank.
        """
        with together(self.op.team):
            if self.op.team is not None:
                reshard(self.op.large)
            self._check_unreplaced()
            if self.release is not None:
                self.release.finish()
        if self.release is None:
            for factor in self.op.parameters():
                if not factor.requires_grad:  # frozen since: the inner optimizer passes over it
                    factor.grad = None
            if held := [p.grad for p in self.op.parameters() if p.grad is not None]:
                torch._foreach_zero_(held)  # one launch; Module.zero_grad makes one for each
            self.op.pullback()
        elif self.op.team is not None:
            mean_(list(learned_factors(self.op).values()), self.op.team)

    def written(self) -> None:
        """The weights were written: free what that worked in before a forward pass needs memory."""
        if self.release is not None:
            self.op._execution.free()

    def zero(self) -> None:
        """Forget what was pulled back inside backward."""
        if self.release is not None:
            self.release.zero()

    def close(self) -> None:
        """Stop consuming gradients."""
        if self.release is not None:
            self.release.close()
            self.release = None

    def _check_unreplaced(self) -> None:
        if not self._owners.hold(self.sources.values()):
            now = dict(self.op.large.named_parameters())
            odd = next((n for n, p in self.sources.items() if now.get(n) is not p), "")
            raise GrowthError(
                f"parameter {odd} of the large model was replaced after GrowthOptimizer was made (by "
                "wrapping, sharding or casting, say): make operator and optimizer after that"
            )
