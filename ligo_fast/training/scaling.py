"""Loss scaling among processes: an overflow on one is an overflow on all, or their factors would drift apart.

Before `step` a `GradScaler` leaves two things on an optimizer that handles them itself: `found_inf`, whether
this process has gradients that are not finite, and `grad_scale`, what they are still multiplied with (None
after `unscale_`). Each process keeps a scale of its own, so gradients are divided before they are added up.
"""

from __future__ import annotations

import torch

from ..errors import GrowthError
from ..processes.dtensors import local
from ..processes.team import Team, together


def is_overflow(optimizer: torch.optim.Optimizer, team: Team, device: torch.device) -> bool:
    """Whether any process has a gradient that is not finite; without a `GradScaler` nobody asks."""
    if (found := getattr(optimizer, "found_inf", None)) is None:
        return False
    flag = torch.as_tensor(local(found), dtype=torch.float32, device=device).reshape(1).clone()
    team.sum_(flag)
    return bool(flag)


def unscale_(optimizer: torch.optim.Optimizer, team: Team) -> None:
    """Divide this process's gradients by the scale, unless the user has done so.

    Raises:
        GrowthError: for float16 gradients, which would lose what the scale saves; on every rank.
    """
    if (scale := getattr(optimizer, "grad_scale", None)) is None:
        return
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    with together(team):
        if any(g.dtype == torch.float16 for g in grads):
            raise GrowthError("gradients are float16: a GradScaler is for float32 parameters under autocast")
    for g in grads:
        local(g).mul_(1.0 / scale.to(g.device))
