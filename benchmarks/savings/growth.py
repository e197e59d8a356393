"""Growing by a recipe, and what of a recipe is not the library's: a teacher, old weights slowed down."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ligo_fast as lf
from benchmarks.savings.kept import name_of, once
from benchmarks.savings.recipes import Recipe
from benchmarks.savings.tasks import Task
from ligo_fast.demo.cost import training_flops
from ligo_fast.demo.train import synchronize

LEARN_SHARE = 4  # learning an operator takes one row in four of a batch


def clock_of(device: torch.device) -> Callable[[], float]:
    """On a CPU a run has one thread, and the time it computes does not count other work on the machine."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def step_flops(task: Task, large: bool, rows: int, device: torch.device) -> int:
    """Of one training step of the large or the small model on so many rows."""
    return rows * _row_flops(task, large, device)


@cache
def _row_flops(task: Task, large: bool, device: torch.device) -> int:
    """Counted on one row, as the attention that is counted keeps all its weights."""
    return training_flops(task.model(large, 0, device), task.batches(0, 1, device)[0])


def grow(
    task: Task,
    recipe: Recipe,
    small: nn.Module,
    large: nn.Module,
    seed: int,
    folder: Path,
    device: torch.device,
) -> tuple[lf.GrowthOperator, dict[str, Any]]:
    """Writes the grown weights into `large`; returns the operator and what that cost.

    An operator is learned once for a seed, as it does not depend on what follows.
    """
    op = lf.GrowthOperator(
        small, large, method=recipe.method, seed=seed, noise=recipe.noise, **recipe.options
    )
    if not op.is_learned:
        op.apply_()
        return op, {"flops": 0.0, "seconds": 0.0}
    digest = sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:12]
    name = name_of(task, seed, "operator", digest)

    def make() -> dict[str, Any]:
        cost = learn(op, task, recipe, seed, device)
        lf.save_operator(op, folder / f"{name}.safetensors")
        return cost

    cost = once(folder, name, make)
    op = lf.load_operator(folder / f"{name}.safetensors", small, large)
    op.apply_()
    return op, cost


def learn(
    op: lf.GrowthOperator, task: Task, recipe: Recipe, seed: int, device: torch.device
) -> dict[str, Any]:
    """Learns an operator as the recipe says; returns FLOPs, seconds and every tenth loss."""
    rows = task.config.batch // LEARN_SHARE
    batches = task.batches(seed, rows, device)
    options = {**recipe.learn, "optimizer": getattr(torch.optim, recipe.learn.get("optimizer", "AdamW"))}
    loss = taught_by(op.small, recipe.teacher, task) if recipe.teacher else task.loss
    clock = clock_of(device)
    synchronize(device)
    start = clock()
    data = [batches[k] for k in range(1, recipe.steps + 1)]
    learned = lf.learn(op, data, recipe.steps, loss=loss, **options)
    synchronize(device)
    seconds = clock() - start
    step = step_flops(task, True, rows, device) + op.flops("apply") + op.flops("pullback")
    if recipe.teacher:
        step += step_flops(task, False, rows, device) / 3  # its forward pass
    return {"flops": recipe.steps * step, "seconds": seconds, "losses": learned.losses[::10]}


def slow_down_old(
    optimizer: torch.optim.Optimizer, task: Task, seed: int, steps: int, device: torch.device
) -> None:
    """For so many steps weights that the small model has, too, move at a tenth of the learning rate."""
    marked = task.model(True, seed, device)
    with torch.no_grad():
        for p in marked.parameters():
            p.fill_(torch.nan)  # and stays so wherever the control `random` has nothing to write
    lf.GrowthOperator(task.model(False, seed, device), marked, "random").apply_()
    pace = [torch.where(p.isnan(), 1.0, 0.1) for p in marked.parameters()]
    parameters = optimizer.param_groups[0]["params"]
    before: list[Tensor] = []
    done = 0

    def keep(*_: Any) -> None:
        before[:] = [p.detach().clone() for p in parameters] if done < steps else []

    def hold_back(*_: Any) -> None:
        nonlocal done
        done += 1
        with torch.no_grad():
            for p, old, share in zip(parameters, before, pace, strict=False):
                p.copy_(old + (p - old) * share)

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(hold_back)


def taught_by(small: nn.Module, share: float, task: Task) -> Any:
    """A loss that mixes the labels' with the divergence from the small model's predictions."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with task.products(batch):
            out = model(**batch)
            with torch.no_grad():
                wanted = small(**batch).logits.log_softmax(-1)
            predicted = out.logits.log_softmax(-1)
            apart = nn.functional.kl_div(predicted, wanted, log_target=True, reduction="none")
            return (1 - share) * out.loss + share * apart.sum(-1).mean()

    return loss
