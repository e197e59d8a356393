"""Learning an operator inside the Trainer of transformers, then ordinary training, in one run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import GrowthError
from .handover import HandOver, Then, decay_groups


class GrowthCallback(TrainerCallback):
    """Hands over to the ordinary optimizer when the operator is learned.

        optimizer = lf.GrowthOptimizer(lf.GrowthOperator(small, large), lr=1e-2)
        schedule = lf.GrowthSchedule(optimizer, learn=100, steps=args.max_steps, warmup=50)
        Trainer(large, args, ..., optimizers=(optimizer, schedule), callbacks=[GrowthCallback()])

    The models must be on the Trainer's device before the operator is made. A checkpoint resumes in either
    phase. Logs get `growth_learning`, 1 while the operator is learned, then 0; with `release_grads` their
    `grad_norm` is that of the factors.

    Args:
        then: makes the next optimizer from the model; left out, it is the one that `args` describe.

    Raises:
        GrowthError: when training begins, for another optimizer, schedule or model, or for `release_grads`
            together with clipping in the Trainer.
    """

    def __init__(self, then: Then | None = None) -> None:
        self.then = then
        self.phases: HandOver | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at what the Trainer works with; after a resume the phase may be the second."""
        self.phases = HandOver(kwargs["optimizer"], kwargs["lr_scheduler"], kwargs["model"])
        release = self.phases.optimizer.release is not None
        if release and args.max_grad_norm and self.phases.is_learning:
            raise GrowthError(
                f"release_grads=True leaves no gradients to clip to max_grad_norm={args.max_grad_norm}: "
                "TrainingArguments(max_grad_norm=0), and GrowthOptimizer(max_grad_norm=...) for the factors"
            )
        self._hand_over_if_due(args)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hand over before the first step of ordinary training: what is logged and saved is of the last."""
        self._hand_over_if_due(args)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say which phase it is."""
        if self.phases is None or logs is None or "loss" not in logs:
            return
        added = {"growth_learning": float(self.phases.is_learning)}
        norm = self.phases.grad_norm()
        if self.phases.optimizer.release is not None and norm is not None:
            added["grad_norm"] = float(norm)
        logs.update(added)
        state.log_history[-1].update(added)

    def _hand_over_if_due(self, args: TrainingArguments) -> None:
        if self.phases is not None and self.phases.is_due():
            self.phases.do(self.then or (lambda model: _described(args, model)))


def _described(args: TrainingArguments, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the arguments describe."""
    make, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    optimizer: torch.optim.Optimizer = make(decay_groups(model, args.weight_decay), **options)
    return optimizer
