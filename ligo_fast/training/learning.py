"""`learn`: the short loop that most people need to learn an operator."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check_batches, check_steps
from ..errors import GrowthError
from ..models.modes import training
from ..operator import GrowthOperator
from ..processes.dtensors import is_sharded, local
from ..processes.team import together
from .optimizer import GrowthOptimizer, check_operator
from .schedule import GrowthSchedule

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass
class Learned:
    """What `learn` did: the loss before each step, and its wall time in seconds."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """`model(**batch).loss`, as Hugging Face models compute it from their labels."""
    if not isinstance(batch, Mapping):
        raise GrowthError(f"a batch is a {type(batch).__name__}, model(**batch) needs a mapping: pass loss=")
    loss = getattr(model(**batch), "loss", None)
    if not isinstance(loss, Tensor):
        raise GrowthError(f"{type(model).__name__} returned no loss: put labels in the batch or pass loss=")
    return loss


def to_device(batch: Any, device: torch.device) -> Any:
    """Tensors of a batch (a mapping, a sequence or a tensor) on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(v, device) for v in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def _endless(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """`steps` batches, starting over when the data ends and can start over."""
    if isinstance(batches, Mapping):
        raise GrowthError(f"the data is one batch of {', '.join(map(str, batches))}: put batches in a list")
    given = 0
    while given < steps:
        before = given
        for batch in batches:
            yield batch
            given += 1
            if given == steps:
                return
        if given == before:
            problem = (
                "the data is empty" if given == 0 else f"the data ended after {given} of {steps} batches"
            )
            raise GrowthError(problem)


def _check_loss(value: Tensor, model: nn.Module) -> None:
    """Raises GrowthError unless the loss is a finite scalar that depends on the model's parameters."""
    if not isinstance(value, Tensor):
        raise GrowthError(f"the loss must be a tensor with a gradient, not a {type(value).__name__}")
    if value.numel() != 1:
        raise GrowthError(f"the loss must be a tensor of one number, not of shape {list(value.shape)}")
    if not bool(torch.isfinite(value.detach()).all()):
        raise GrowthError(f"the loss of the first batch is {float(value.detach())}: nothing can be learned")
    if value.grad_fn is not None and any(map(is_sharded, model.parameters())):
        return  # FSDP gives the graph gathered copies of the parameters
    wanted = {id(p) for p in model.parameters()}
    todo, seen = [value.grad_fn], set()
    while todo:  # the autograd graph, back to its leaves
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return
        todo += [n for n, _ in node.next_functions]
    raise GrowthError("the loss has no gradient: it does not depend on the model's parameters")


def _check_gradients(opt: GrowthOptimizer, step: str, loss: float) -> None:
    """Raises GrowthError where a loss that is not finite has a gradient that is not.

    The loss of a batch without labels that count is NaN, its gradient 0: that does no harm.
    """
    for name, p in opt.shown.named_parameters():
        if p.grad is not None and not bool(torch.isfinite(local(p.grad)).all()):
            opt.zero_grad()
            raise GrowthError(
                f"step {step}: the loss is {loss} and the gradient of {name} is not finite; factors and "
                "weights are as the steps before left them"
            )


def _check_factors(op: GrowthOperator, steps: int) -> None:
    """Raises GrowthError for factors that are not finite: a finite loss may have a gradient that is not."""
    for name, p in op.named_parameters():
        if not bool(torch.isfinite(p).all()):
            raise GrowthError(f"after {steps} steps factor {name} is not finite: a gradient was not")


def learn(
    op: GrowthOperator,
    batches: Iterable[Any],
    steps: int = 100,
    *,
    lr: float = 1e-2,
    warmup: int = 10,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    depth_lr: float = 1.0,
    max_grad_norm: float | None = 1.0,
    release_grads: bool = False,
    loss: Loss = model_loss,
    progress: Callable[[int, float], None] | None = None,
    **options: Any,
) -> Learned:
    """Learn an operator on data; afterwards the large model holds the grown weights.

    Args:
        op: the operator; its large model is trained through its factors.
        batches: any iterable of batches (mappings, sequences, named tuples or tensors; brought to the
            operator's device); started over when it ends before `steps`.
        steps: optimizer steps.
        lr, warmup: peak learning rate, reached linearly in `warmup` steps (half of them all, where there
            are no more), then linear decay to zero.
        optimizer, options: the inner optimizer's class and its other options. torch's AdamW comes with
            weight_decay=0.01, which takes D, whose natural values are 0 and 1, to 0.5% less in the 100 steps
            of the defaults and to 5% less in 1000: give weight_decay=0 where that is not wanted.
        depth_lr: learning rate of D relative to the width factors'.
        max_grad_norm: clip the factors' gradient norm; None or 0 leaves it.
        release_grads: keep no gradient of the large model, see `GrowthOptimizer`.
        loss: `loss(model, batch)`, a scalar; by default `model(**batch).loss`.
        progress: called as `progress(step, loss)` after every step.

    Raises:
        GrowthError: for empty data, a loss without gradient or one that is not finite to begin with, before
            any weight is written. Later for a loss that is not finite and whose gradient is not either,
            naming the step, before it changes the factors; and for factors that are not finite in the end.
    """
    check_operator(op)
    steps, warmup = check_steps(steps), check_steps(warmup, "warmup", 0)
    check_batches("batches", batches)
    data = _endless(batches, steps)
    first = next(data)  # raises here for empty data, before GrowthOptimizer writes
    large = op.large
    with training(large, True):
        _check_loss(loss(large, to_device(first, op.device)), large)
        made = GrowthOptimizer(
            op, optimizer, depth_lr=depth_lr, max_grad_norm=max_grad_norm, release_grads=release_grads, lr=lr,
            **options,
        )  # fmt: skip
        with contextlib.closing(made) as opt:  # interrupted, too, it leaves the model its gradients
            schedule = GrowthSchedule(opt, learn=steps, learn_warmup=warmup)
            result, start = Learned(), time.perf_counter()
            for step in range(steps):
                value = loss(large, to_device(first if step == 0 else next(data), op.device))
                value.backward()
                result.losses.append(float(value.detach()))  # a GPU is waited for here, once a step
                with together(op.team):
                    if not math.isfinite(result.losses[-1]):
                        _check_gradients(opt, f"{step + 1} of {steps}", result.losses[-1])
                opt.step()
                opt.zero_grad()
                schedule.step()
                if progress is not None:
                    progress(step, result.losses[-1])
        _check_factors(op, steps)
    result.seconds = time.perf_counter() - start
    return result
