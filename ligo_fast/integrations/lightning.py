"""Learning an operator inside Lightning's Trainer, then ordinary training, in one run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .handover import HandOver, Then


class GrowthCallback(Callback):
    """Hands over to the ordinary optimizer when the operator is learned.

    The module's `configure_optimizers` makes operator, `GrowthOptimizer` and `GrowthSchedule` (Lightning has
    moved the models by then) and returns the schedule with interval "step". A checkpoint resumes in either
    phase. Lightning clips the parameters that the optimizer shows: the large model's, or the factors with
    `release_grads`. `growth_learning` is logged: 1 while the operator is learned, then 0.

    Args:
        then: makes the next optimizer from the large model.

    Raises:
        GrowthError: when training begins, for another optimizer or schedule.
    """

    def __init__(self, then: Then) -> None:
        self.then = then
        self.phases: HandOver | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the Trainer works with; after a resume the phase may be the second."""
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs] or [None]
        optimizer = trainer.optimizers[0]
        large = getattr(getattr(optimizer, "op", None), "large", pl_module)
        self.phases = HandOver(optimizer, schedules[0], large)
        self._hand_over_if_due()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Hand over before the first step of ordinary training: what is logged and saved is of the last."""
        assert self.phases is not None
        self._hand_over_if_due()
        pl_module.log("growth_learning", float(self.phases.is_learning))

    def _hand_over_if_due(self) -> None:
        if self.phases is not None and self.phases.is_due():
            self.phases.do(self.then)
