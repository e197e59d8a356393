"""GrowthOptimizer: to a trainer an optimizer of the large model, in truth one of the operator's factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
import torch.distributed as dist

from .backends import Owners
from .distributed import mean_
from .dtensors import is_sharded, reshard
from .errors import GrowthError
from .operator import GrowthOperator
from .released import GradientRelease
from .team import team_of_group, together


class GrowthOptimizer(torch.optim.Optimizer):
    """Learns a growth operator inside any trainer's loop.

    The large model's parameters stay ordinary leaves. `step()` pulls each `.grad` back to the factors,
    steps the inner optimizer on them and writes the new weights in place, so accumulation, clipping,
    schedulers and `GradScaler` work on the large model as ever. Building it writes the initial weights.

    With `release_grads` every gradient is pulled back and freed inside backward: learning then needs the
    memory of the weights and activations alone. `param_groups` hold the factors (a `GradScaler` unscales
    their gradients), and the large model's gradients cannot be read or clipped any more: whoever tries gets
    a GrowthError. DDP and FSDP read them, too: several processes learn with `process_group` alone.

    Args:
        op: the operator; it must have factors to learn.
        inner: the class of the inner optimizer, built on the factors.
        depth_lr: learning rate of the depth factors D relative to the width factors'.
        max_grad_norm: clip the norm of the factors' gradient, after the pull-back and after the reduction.
        release_grads: consume the large model's gradients inside backward.
        process_group: processes that learn the same operator on data of their own (all of them:
            `torch.distributed.group.WORLD`): the mean of the factors' gradients is taken, in one all-reduce.
            The model needs no DistributedDataParallel then; with one around it the result is the same. A
            sharded model needs no process_group: its own mesh says who takes part.
        options: of the inner optimizer (`lr`, `betas`, `weight_decay` …). They appear in `param_groups`, and
            what a scheduler writes there reaches the inner optimizer.

    Raises:
        GrowthError: for an operator without factors, a step without any gradient, a parameter that was
            replaced since, or release_grads of a sharded model; on every rank, when the ranks have not made
            the same operator.
    """

    def __init__(
        self,
        op: GrowthOperator,
        inner: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        *,
        depth_lr: float = 1.0,
        max_grad_norm: float | None = None,
        release_grads: bool = False,
        process_group: dist.ProcessGroup | None = None,
        **options: Any,
    ) -> None:
        if not op.is_learned:
            raise GrowthError(
                f"method {op.growth.method!r} has no factors to learn; call op.apply_() instead"
            )
        if release_grads and any(map(is_sharded, op.large.parameters())):
            raise GrowthError("release_grads=True needs whole gradients, the large model is sharded")
        self.op, self.max_grad_norm = op, max_grad_norm
        if process_group is not None:
            op.join(team_of_group(process_group, op.device))
        factors = list(op.named_parameters())
        groups = [
            {"params": [p for n, p in factors if not n.startswith("depth/")], "lr_scale": 1.0},
            {"params": [p for n, p in factors if n.startswith("depth/")], "lr_scale": depth_lr},
        ]
        self.inner = inner([g for g in groups if g["params"]], **options)
        self.next: torch.optim.Optimizer | None = None
        self._next_state: dict[str, Any] | None = None
        self._parameters = dict(op.large.named_parameters())
        self._owners = Owners(op.large, self._parameters)
        self.release = GradientRelease(op) if release_grads else None
        shown = op if release_grads else op.large
        super().__init__(list(shown.parameters()), dict(self.inner.defaults))
        op.apply_()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Pull the gradients back, step the factors, write the large model's parameters."""
        self._check_stage()
        if self.next is not None:
            return self.next.step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._pull_back()
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.op.parameters(), self.max_grad_norm)
        outer = {k: v for k, v in self.param_groups[0].items() if k != "params"}
        for group in self.inner.param_groups:
            group.update(outer)
            group["lr"] = outer["lr"] * group["lr_scale"]
        self.inner.step()
        self.op.apply_()
        return loss

    def _pull_back(self) -> None:
        """The factors' gradients, from those of the large model; over all ranks, if several."""
        with together(self.op.team):
            if self.op.team is not None:
                reshard(self.op.large)
            self._check_unreplaced()
            if self.release is not None:
                self.release.finish()
        if self.release is None:
            self.inner.zero_grad(set_to_none=False)
            self.op.pullback()
        elif self.op.team is not None:
            mean_(list(self.op.parameters()), self.op.team)

    def _check_unreplaced(self) -> None:
        if not self._owners.hold(self._parameters.values()):
            now = dict(self.op.large.named_parameters())
            odd = next((n for n, p in self._parameters.items() if now.get(n) is not p), "")
            raise GrowthError(
                f"parameter {odd} of the large model was replaced after GrowthOptimizer was made (by "
                "wrapping, sharding or casting, say): make operator and optimizer after that"
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients of the large model and, with `release_grads`, of the factors."""
        super().zero_grad(set_to_none)
        if self.release is not None:
            self.release.zero()

    # after learning

    def close(self) -> None:
        """With `release_grads`: stop consuming gradients, so that another optimizer can have them."""
        if self.release is not None:
            self.release.close()
            self.release = None

    def hand_over(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on be that optimizer of the large model's parameters: for trainers that keep theirs.

        `step`, `zero_grad`, `param_groups` and the state are then the other's; the factors' optimizer is
        forgotten. A state that was saved after a hand-over and loaded here is given to `optimizer`.

        Raises:
            GrowthError: when it was handed over before, or the optimizer has parameters of another model.
        """
        if self.next is not None:
            raise GrowthError(f"it was handed over before, to {type(self.next).__name__}")
        own = {id(p) for p in self._parameters.values()}
        foreign = sum(id(p) not in own for g in optimizer.param_groups for p in g["params"])
        if foreign:
            raise GrowthError(f"{foreign} parameters of {type(optimizer).__name__} are not the large model's")
        self.close()
        self.zero_grad()
        if self._next_state is not None:
            optimizer.load_state_dict(self._next_state)
            self._next_state = None
        self.inner.state.clear()
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.next, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state

    @property
    def is_waiting(self) -> bool:
        """Whether a state from after a hand-over was loaded, and `hand_over` has to follow."""
        return self._next_state is not None

    def _check_stage(self) -> None:
        if self.is_waiting:
            raise GrowthError("the state was saved after hand_over(): call it with the next optimizer first")

    # state

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs: groups, the factors and the inner optimizer's state."""
        factors = {n: p.detach().clone() for n, p in self.op.named_parameters()}
        if self.next is not None or self._next_state is not None:
            state = self._next_state if self.next is None else self.next.state_dict()
            return {"state": {}, "param_groups": [], "factors": factors, "next": state}
        return {**super().state_dict(), "inner": self.inner.state_dict(), "factors": factors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; factors that are new here write the large model's parameters.

        A state from after a hand-over leaves the large model alone and waits for `hand_over`.

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
        if "next" not in state_dict and self.next is not None:
            raise GrowthError("the state is from before the hand-over, this optimizer was handed over")
        # accelerate loads an optimizer's own state again after it may have loaded the model's weights
        known = all(torch.equal(p, given[name].to(p.device)) for name, p in factors.items())
        with torch.no_grad():
            for name, p in factors.items():
                p.copy_(given[name])
        if "next" in state_dict:
            if self.next is None:
                self._next_state = state_dict["next"]
            else:
                self.next.load_state_dict(state_dict["next"])
                self.param_groups, self.state = self.next.param_groups, self.next.state
            return
        # which parameters the groups show depends on release_grads, which may have changed
        shown = self.param_groups[0]["params"]
        groups = [{**g, "params": list(range(len(shown)))} for g in state_dict["param_groups"]]
        super().load_state_dict({"state": state_dict["state"], "param_groups": groups})
        self.inner.load_state_dict(state_dict["inner"])
        if not known:
            self.op.apply_()
