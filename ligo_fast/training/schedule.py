"""GrowthSchedule: the learning rate of the operator, then of ordinary training, warmed up anew."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..arguments import check_steps
from ..errors import GrowthError


class GrowthSchedule(torch.optim.lr_scheduler.LRScheduler):
    """Two phases: `learn` steps for the operator, then ordinary training of the large model.

    In each the rate rises linearly to that of the optimizer's groups and falls linearly to zero; a rise that
    would leave no step for the fall takes half of the phase. After
    `GrowthOptimizer.hand_over` the groups are those of the next optimizer, with its learning rates.

    Args:
        optimizer: a `GrowthOptimizer`.
        learn: optimizer steps of the first phase.
        steps: of both phases together; None when there is only the first.
        learn_warmup, warmup: steps of the linear rise in the first and in the second phase.
        then: instead of the linear rise and fall: the factor of a step of the second phase, counted from 0.

    Raises:
        GrowthError: for numbers of steps that are no integers, or leave a phase without any.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        learn: int,
        steps: int | None = None,
        *,
        learn_warmup: int = 10,
        warmup: int = 0,
        then: Callable[[int], float] | None = None,
    ) -> None:
        learn = check_steps(learn, "learn")
        steps = None if steps is None else check_steps(steps)
        learn_warmup, warmup = check_steps(learn_warmup, "learn_warmup", 0), check_steps(warmup, "warmup", 0)
        if steps is not None and steps <= learn:
            raise GrowthError(f"learn={learn} of steps={steps}: each phase needs at least one step")
        self.learn, self.steps, self.then = learn, steps, then
        self.learn_warmup, self.warmup = learn_warmup, warmup
        super().__init__(optimizer)

    @property
    def is_learned(self) -> bool:
        """Whether the first phase is over."""
        return self.last_epoch >= self.learn

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied with at a step."""
        if step < self.learn or self.steps is None:
            return _rise_and_fall(step, self.learn, self.learn_warmup)
        if self.then is not None:
            return self.then(step - self.learn)
        return _rise_and_fall(step - self.learn, self.steps - self.learn, self.warmup)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of every group of the optimizer."""
        factor = self.factor(self.last_epoch)
        return [group["initial_lr"] * factor for group in self.optimizer.param_groups]

    def refresh(self) -> None:
        """Write the present step's rates again, after the groups have changed."""
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, object]:
        """Where it is; what it was made with is not part of it."""
        return {key: self.__dict__[key] for key in ("last_epoch", "_step_count", "_last_lr")}


def _rise_and_fall(step: int, steps: int, warmup: int) -> float:
    warmup = warmup if warmup < steps else steps // 2
    return max(0.0, min((step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup), 1.0))
