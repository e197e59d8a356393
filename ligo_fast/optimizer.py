"""GrowthOptimizer: to a trainer an optimizer of the large model, in truth one of the operator's factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
import torch.distributed as dist

from .errors import GrowthError
from .operator import GrowthOperator
from .team import team_of_group


class GrowthOptimizer(torch.optim.Optimizer):
    """Learns a growth operator inside any trainer's loop.

    The large model's parameters stay ordinary leaves. `step()` pulls each `.grad` back to the factors,
    steps the inner optimizer on them and writes the new weights in place, so accumulation, clipping,
    schedulers and `GradScaler` work on the large model as ever. Building it writes the initial weights.

    Args:
        op: the operator; it must have factors to learn.
        inner: the class of the inner optimizer, built on the factors.
        depth_lr: learning rate of the depth factors D relative to the width factors'.
        max_grad_norm: clip the norm of the factors' gradient, after the pull-back and after the reduction.
        process_group: processes that learn the same operator on data of their own (all of them:
            `torch.distributed.group.WORLD`): the mean of the factors' gradients is taken, in one all-reduce.
            The model needs no DistributedDataParallel then; with one around it the result is the same. A
            sharded model needs no process_group: its own mesh says who takes part.
        options: of the inner optimizer (`lr`, `betas`, `weight_decay` …). They appear in `param_groups`, and
            what a scheduler writes there reaches the inner optimizer.

    Raises:
        GrowthError: for an operator without factors, or a step without any gradient; on every rank, when
            the ranks have not made the same operator.
    """

    def __init__(
        self,
        op: GrowthOperator,
        inner: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        *,
        depth_lr: float = 1.0,
        max_grad_norm: float | None = None,
        process_group: dist.ProcessGroup | None = None,
        **options: Any,
    ) -> None:
        if not op.is_learned:
            raise GrowthError(
                f"method {op.growth.method!r} has no factors to learn; call op.apply_() instead"
            )
        self.op, self.max_grad_norm = op, max_grad_norm
        if process_group is not None:
            op.join(team_of_group(process_group, op.device))
        factors = list(op.named_parameters())
        groups = [
            {"params": [p for n, p in factors if not n.startswith("depth/")], "lr_scale": 1.0},
            {"params": [p for n, p in factors if n.startswith("depth/")], "lr_scale": depth_lr},
        ]
        self.inner = inner([g for g in groups if g["params"]], **options)
        super().__init__(list(op.large.parameters()), dict(self.inner.defaults))
        op.apply_()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Pull the gradients back, step the factors, write the large model's parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.inner.zero_grad(set_to_none=False)
        self.op.pullback()
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.op.parameters(), self.max_grad_norm)
        outer = {k: v for k, v in self.param_groups[0].items() if k != "params"}
        for group in self.inner.param_groups:
            group.update(outer)
            group["lr"] = outer["lr"] * group["lr_scale"]
        self.inner.step()
        self.op.apply_()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs: groups, the factors and the inner optimizer's state."""
        return {
            **super().state_dict(),
            "inner": self.inner.state_dict(),
            "factors": {n: p.detach().clone() for n, p in self.op.named_parameters()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave and write the large model's parameters from the factors.

        Raises:
            GrowthError: when the factors are another operator's, naming the first that differs.
        """
        factors = dict(self.op.named_parameters())
        given = state_dict.get("factors", {})
        if factors.keys() != given.keys():
            odd = sorted(factors.keys() ^ given.keys())[0]
            raise GrowthError(f"the state is another operator's: factor {odd} is only on one side")
        for name, p in factors.items():
            if p.shape != given[name].shape:
                raise GrowthError(
                    f"factor {name}: {tuple(given[name].shape)} in the state, {tuple(p.shape)} here"
                )
        super().load_state_dict({k: state_dict[k] for k in ("state", "param_groups")})
        self.inner.load_state_dict(state_dict["inner"])
        with torch.no_grad():
            for name, p in factors.items():
                p.copy_(given[name])
        self.op.apply_()
