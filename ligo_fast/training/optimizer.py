"""GrowthOptimizer: to a trainer an optimizer of the large model, in truth one of the operator's factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
import torch.distributed as dist

from ..arguments import check_amount, check_optimizer
from ..errors import GrowthError
from ..growth import hash_maps
from ..operator import GrowthOperator
from ..processes.dtensors import is_sharded
from ..processes.team import team_of_group, together
from .factors import check_factors, check_learns, factor_groups, factor_state, learned_factors, load_factors
from .gradients import FactorGradients
from .released import GradientRelease
from .scaling import is_overflow, unscale_
from .successor import Successor


def check_operator(op: Any) -> None:
    """Raises GrowthError unless this is an operator."""
    if not isinstance(op, GrowthOperator):
        raise GrowthError(f"op={type(op).__name__}: a GrowthOperator is needed")


class GrowthOptimizer(torch.optim.Optimizer):
    """Learns a growth operator inside any trainer's loop.

    The large model's parameters stay ordinary leaves. `step()` pulls each `.grad` back to the factors,
    steps the inner optimizer on them and writes the new weights in place, so accumulation, clipping,
    schedulers and `GradScaler` work on the large model as ever. Building it writes the initial weights over
    those that the model had. Parameters of the large model that are frozen have no gradient and are written
    all the same: what is not to be learned are factors.

    With `release_grads` every gradient is pulled back and freed inside backward: learning then needs the
    memory of the weights and activations alone. `param_groups` hold the factors (a `GradScaler` unscales
    their gradients), and the large model's gradients cannot be read or clipped any more: whoever tries gets
    a GrowthError. DDP and FSDP read them, too: several processes learn with `process_group` alone. There is
    one backward pass at a time, in whatever thread.

    Args:
        op: the operator; it must have factors to learn. Those that are frozen (`requires_grad` False) when
            this is made stay as they are.
        inner: the class of the inner optimizer, built on the factors.
        depth_lr: learning rate of the depth factors D relative to the width factors'.
        max_grad_norm: clip the norm of the factors' gradient, after the pull-back and after the reduction;
            None or 0 leaves it.
        release_grads: consume the large model's gradients inside backward.
        process_group: processes that learn the same operator on data of their own (all of them:
            `torch.distributed.group.WORLD`): the mean of the factors' gradients is taken, in one all-reduce.
            Under a `GradScaler` an overflow on one of them skips the step of all.
            The model needs no DistributedDataParallel then; with one around it the result is the same. A
            sharded model needs no process_group: its own mesh says who takes part.
        options: of the inner optimizer (`lr`, `betas`, `weight_decay` …). They appear in `param_groups`, and
            what a scheduler writes there reaches the inner optimizer. AdamW's own weight_decay of 0.01 takes
            the factors to 10% less in 1000 steps at 1e-2; D's natural values are not 0. `inner.param_groups`
            are two, width and depth: every step gives both what `param_groups[0]` says, but for the rate's
            `depth_lr`.

    Raises:
        GrowthError: for an operator without factors or with all of them frozen, a step without any gradient,
            a parameter that was replaced since, or release_grads of a sharded model; on every rank, when the
            ranks have not made the same operator, or have frozen other factors.
    """

    leaves_grown_weights = True  # after a step the parameters are what apply_ wrote (ligo_fast.unchanged)

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
        check_operator(op)
        if release_grads and any(map(is_sharded, op.large.parameters())):
            raise GrowthError("release_grads=True needs whole gradients, the large model is sharded")
        check_optimizer(inner)
        depth_lr = check_amount("depth_lr", depth_lr)
        if max_grad_norm is not None:  # 0 is off, as in trainers
            max_grad_norm = check_amount("max_grad_norm", max_grad_norm) or None
        self.op, self.max_grad_norm = op, max_grad_norm
        if process_group is not None:
            op.join(team_of_group(process_group, op.device))
        with together(op.team):
            check_learns(op)
        if op.team is not None:
            op.team.compare({"learned factors": " ".join(learned_factors(op))})
        try:
            self.inner = inner(factor_groups(op, depth_lr), **options)
        except (TypeError, ValueError) as error:
            name = getattr(inner, "__name__", repr(inner))
            raise GrowthError(f"{name} does not take groups of width and depth factors: {error}") from error
        if isinstance(self.inner, torch.optim.SparseAdam | torch.optim.LBFGS):
            what = "sparse gradients" if isinstance(self.inner, torch.optim.SparseAdam) else "a closure"
            raise GrowthError(f"{type(self.inner).__name__} cannot step the factors: it wants {what}")
        self._gradients = FactorGradients(op, release_grads)
        self._successor = Successor()
        try:
            super().__init__(list(self._gradients.shown.parameters()), dict(self.inner.defaults))
            self._write()
        except BaseException:
            self.close()  # nobody else could
            raise

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What a `GradScaler` asks: whether `step` skips overflows itself. Among processes all must skip."""
        return self.op.team is not None and self.next is None

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Pull the gradients back, step the factors, write the large model's parameters."""
        if self.is_waiting:
            raise GrowthError("the state was saved after hand_over(): call it with the next optimizer first")
        if self.next is not None:
            return self.next.step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.op.team is not None:
            if is_overflow(self, self.op.team, self.op.device):
                return loss
            unscale_(self, self.op.team)
        self._gradients.pull_back()
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.op.parameters(), self.max_grad_norm)
        outer = {k: v for k, v in self.param_groups[0].items() if k != "params"}
        for group in self.inner.param_groups:
            group.update(outer)
            group["lr"] = outer["lr"] * group["lr_scale"]
        self.inner.step()
        self._write()
        return loss

    def _write(self) -> None:
        self.op.apply_()
        self._gradients.written()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients of the large model and, with `release_grads`, of the factors."""
        super().zero_grad(set_to_none)
        self._gradients.zero()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Of the next optimizer, after a hand-over.

        Raises:
            GrowthError: before it: what is learned are the operator's factors.
        """
        if self.next is not None:
            self.next.add_param_group(param_group)
        elif self.param_groups:
            raise GrowthError("a GrowthOptimizer learns its operator's factors and no other parameters")
        else:
            super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        raise GrowthError(
            "a GrowthOptimizer is bound to its models and cannot be copied or pickled: make another and load "
            "state_dict() into it"
        )

    # after learning

    @property
    def shown(self) -> torch.nn.Module:
        """Whose parameters `param_groups` hold until a hand-over: the large model, or the operator."""
        return self._gradients.shown

    @property
    def release(self) -> GradientRelease | None:
        """What consumes the large model's gradients inside backward, if something does."""
        return self._gradients.release

    @property
    def next(self) -> torch.optim.Optimizer | None:
        """The optimizer that it was handed over to, if it was."""
        return self._successor.optimizer

    @property
    def is_waiting(self) -> bool:
        """Whether a state from after a hand-over was loaded, and `hand_over` has to follow."""
        return self._successor.waiting is not None

    def close(self) -> None:
        """With `release_grads`: stop consuming gradients, so that another optimizer can have them."""
        self._gradients.close()

    def hand_over(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on be that optimizer of the large model's parameters: for trainers that keep theirs.

        `step`, `zero_grad`, `param_groups` and the state are then the other's; the factors' optimizer is
        forgotten. A state that was saved after a hand-over and loaded here is given to `optimizer`.

        Raises:
            GrowthError: when it was handed over before, or the optimizer has parameters of another model.
        """
        self._successor.take(optimizer, self._gradients.sources.values())
        self.close()
        self.zero_grad()
        self.inner.state.clear()
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    # state

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs: groups, the factors and the inner optimizer's state.

        The maps that are not learned follow from the method and the seed: a hash tells them from others.
        """
        own = {"factors": factor_state(self.op), "fixed": self._fixed()}
        if (state := self._successor.state_dict()) is not None:
            return {"state": {}, "param_groups": [], **own, "next": state}
        return {**super().state_dict(), "inner": self.inner.state_dict(), **own}

    def _fixed(self) -> str:
        return f"{self.op.growth.method} {hash_maps(self.op.growth, learned=False)}"

    def _check_learned(self, inner: dict[str, Any]) -> None:
        """Raises GrowthError for a state of the inner optimizer with other numbers of factors."""
        there, here = (
            [len(g["params"]) for g in groups] for groups in (inner["param_groups"], self.inner.param_groups)
        )
        if there != here:
            raise GrowthError(
                f"the state was saved with {sum(there)} learned factors, {sum(here)} are learned here: "
                "freeze the same ones (requires_grad) before the optimizer is made"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; factors that are new here write the large model's parameters.

        A state from after a hand-over leaves the large model alone and waits for `hand_over`.

        Raises:
            GrowthError: when the factors are another operator's, naming the first that differs, or it has
                none: it is another optimizer's; when its fixed maps are another method's or seed's.
        """
        if not isinstance(state_dict, dict):
            raise GrowthError(f"state_dict={type(state_dict).__name__}: what state_dict() gave is needed")
        if "factors" not in state_dict:
            raise GrowthError(f"not a GrowthOptimizer's state: no factors beside {', '.join(state_dict)}")
        check_factors(self.op, factors := state_dict["factors"])
        if state_dict.get("fixed", ours := self._fixed()) != ours:
            raise GrowthError(
                f"the state was learned beside other fixed maps than method {self.op.growth.method!r} makes "
                f"with seed={self.op.seed}: make the operator as it was made then"
            )
        if "next" not in state_dict and self.next is not None:
            raise GrowthError("the state is from before the hand-over, this optimizer was handed over")
        if "inner" in state_dict:
            self._check_learned(state_dict["inner"])
        changed = load_factors(self.op, factors)
        if "next" in state_dict:
            self._successor.load_state_dict(state_dict["next"])
            if self.next is not None:
                self.param_groups, self.state = self.next.param_groups, self.next.state
            return
        # which parameters the groups show depends on release_grads, which may have changed
        shown = self.param_groups[0]["params"]
        groups = [{**g, "params": list(range(len(shown)))} for g in state_dict["param_groups"]]
        super().load_state_dict({"state": state_dict["state"], "param_groups": groups})
        self.inner.load_state_dict(state_dict["inner"])
        if changed:  # accelerate loads it again when it may have loaded the model's weights
            self._write()
