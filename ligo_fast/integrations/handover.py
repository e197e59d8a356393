"""What the trainers' callbacks share: learn the operator, then hand the trainer's optimizer over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GrowthError
from ..models.target import unwrap
from ..training.optimizer import GrowthOptimizer
from ..training.schedule import GrowthSchedule

Then = Callable[[nn.Module], torch.optim.Optimizer]


class HandOver:
    """The two phases of a trainer's run, by its optimizer and its schedule.

    Raises:
        GrowthError: for another optimizer or schedule than ours, or an operator that grows another model.
    """

    def __init__(self, optimizer: Any, schedule: Any, model: nn.Module) -> None:
        # accelerate wraps both
        optimizer = getattr(optimizer, "optimizer", optimizer)
        schedule = (
            schedule if isinstance(schedule, GrowthSchedule) else getattr(schedule, "scheduler", schedule)
        )
        for given, wanted in ((optimizer, GrowthOptimizer), (schedule, GrowthSchedule)):
            if not isinstance(given, wanted):
                raise GrowthError(
                    f"GrowthCallback needs a {wanted.__name__}, the trainer has a {type(given).__name__}"
                )
        self.optimizer: GrowthOptimizer = optimizer
        self.schedule: GrowthSchedule = schedule
        self.large = unwrap(model)
        if self.optimizer.op.large is not self.large:
            raise GrowthError(
                f"the operator grows another {type(self.optimizer.op.large).__name__} than the one that the "
                "trainer trains: make it from the trainer's model"
            )

    @property
    def is_learning(self) -> bool:
        """Whether the operator is being learned."""
        return self.optimizer.next is None and not self.optimizer.is_waiting

    def is_due(self) -> bool:
        """Whether it is time to hand over: learned, or resumed from a state in which it was."""
        return self.optimizer.next is None and (self.schedule.is_learned or self.optimizer.is_waiting)

    def do(self, then: Then) -> None:
        """Hand over to the optimizer that `then` makes, at the schedule's present rate."""
        self.optimizer.hand_over(then(self.large))
        self.schedule.refresh()

    def grad_norm(self) -> Tensor | None:
        """Norm of the factors' last gradient."""
        grads = [p.grad for p in self.optimizer.op.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads) if grads else None


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters: matrices decay, vectors (biases, norms) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
