"""A GrowthOptimizer for torch.distributed.checkpoint, which loads into a state that must be there already."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from .optimizer import GrowthOptimizer


class GrowthState:
    """What `torch.distributed.checkpoint` saves and loads of an optimizer: factors, moments, groups.

    `dcp.save({"model": large, "growth": GrowthState(opt)}, checkpoint_id=folder)`, and `dcp.load` alike. All
    of it is the same on every rank and is written once; it loads on any number of ranks. Before the inner
    optimizer's first step its state is saved, and asked for, as zeros: for Adam, AdamW, RMSprop and SGD
    without dampening the same as none.
    """

    def __init__(self, optimizer: GrowthOptimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, complete."""
        state = self.optimizer.state_dict()
        if not self.optimizer.inner.state:
            state["inner"] = _zero_state(self.optimizer.inner)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `GrowthOptimizer.load_state_dict`."""
        self.optimizer.load_state_dict(state_dict)


def _zero_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state that an optimizer will have after its first step, all zeros."""
    twin = copy.deepcopy(optimizer)  # of parameters, too
    for group in twin.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    twin.step()
    for values in twin.state.values():
        for name, value in values.items():
            values[name] = torch.zeros_like(value) if isinstance(value, Tensor) else type(value)()
    return {**twin.state_dict(), "param_groups": optimizer.state_dict()["param_groups"]}
