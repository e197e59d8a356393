"""What comes after learning: the optimizer that a GrowthOptimizer was handed over to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import GrowthError


class Successor:
    """The next optimizer or, after a resume, its state, until there is one to load it into.

    Attributes:
        optimizer: None before the hand-over.
        waiting: the state that waits for it.
    """

    def __init__(self) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        self.waiting: dict[str, Any] | None = None

    def take(self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
        """Hand over to an optimizer of some of these parameters; a state that waits is loaded into it.

        Raises:
            GrowthError: when there is one already, or it has other parameters, too.
        """
        if not isinstance(getattr(optimizer, "param_groups", None), list):
            raise GrowthError(f"optimizer={type(optimizer).__name__}: an optimizer is needed")
        if self.optimizer is not None:
            raise GrowthError(f"it was handed over before, to {type(self.optimizer).__name__}")
        own = {id(p) for p in parameters}
        foreign = sum(id(p) not in own for g in optimizer.param_groups for p in g["params"])
        if foreign:
            raise GrowthError(f"{foreign} parameters of {type(optimizer).__name__} are not the large model's")
        if self.waiting is not None:
            optimizer.load_state_dict(self.waiting)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.optimizer, self.waiting = optimizer, None

    def state_dict(self) -> dict[str, Any] | None:
        """The next optimizer's state; None when learning is not over."""
        return self.waiting if self.optimizer is None else self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Into the next optimizer, or kept for it."""
        if self.optimizer is None:
            self.waiting = state
        else:
            self.optimizer.load_state_dict(state)
