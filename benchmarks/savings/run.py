"""One run: a small model (trained once for a task and seed), grown by a recipe, trained like scratch."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

import ligo_fast as lf
from benchmarks.savings.recipes import Recipe
from benchmarks.savings.tasks import Task
from ligo_fast.demo.cost import training_flops
from ligo_fast.demo.train import Point, make_optimizer, train

LEARN_SHARE = 4  # learning an operator takes one row in four of a batch


@dataclass(frozen=True)
class Setting:
    """What a run depends on beside its task and recipe."""

    lr: float
    warmup: int
    seed: int


def small_model(
    task: Task, seed: int, brief: bool, folder: Path, device: torch.device
) -> tuple[nn.Module, dict[str, Any]]:
    """The trained small model and what it cost; the first process that asks trains it."""
    config = replace(task.config, seed=seed)
    model = task.model(False, seed, device)
    name = f"{task.name}-{seed}{'-brief' if brief else ''}"
    weights, facts = folder / f"{name}.safetensors", folder / f"{name}.json"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not facts.exists():
            batches = task.batches(seed, config.batch, device)
            curve = train(
                model, batches, task.validation(device), config,
                steps=task.brief_steps if brief else config.small_steps, lr=config.lr, warmup=config.warmup,
                step_flops=training_flops(model, batches[0]), on_step=lambda: None, loss=task.loss,
        clock=clock_of(device),
            )  # fmt: skip
            save_model(model, str(weights))
            cost = curve[-1].cost
            facts.write_text(
                json.dumps({"flops": cost.flops, "seconds": cost.seconds, "loss": curve[-1].loss})
            )
    load_model(model, weights)
    return model, json.loads(facts.read_text())


def clock_of(device: torch.device) -> Callable[[], float]:
    """On a CPU a run has one thread, and the time it computes does not count other work on the machine."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def run(task: Task, recipe: Recipe, setting: Setting, folder: Path, device: torch.device) -> dict[str, Any]:
    """Curve (step, FLOPs, seconds, loss), the cost of growing and of the small model."""
    config, seed = replace(task.config, seed=setting.seed), setting.seed
    batches = task.batches(seed, config.batch, device)
    large = task.model(True, seed, device)
    flops = training_flops(large, batches[0])
    growth, small_cost = {"flops": 0.0, "seconds": 0.0}, {"flops": 0.0, "seconds": 0.0}
    if recipe.method is not None:
        small, small_cost = small_model(task, seed, recipe.brief, folder, device)
        growth = grow(task, recipe, small, large, seed, device)
    optimizer = make_optimizer(large, setting.lr, config)
    if recipe.slow_old:
        slow_down_old(optimizer, task, seed, recipe.slow_old, device)
    curve = train(
        large, batches, task.validation(device), config, optimizer=optimizer, steps=config.steps,
        lr=setting.lr, warmup=setting.warmup, step_flops=flops, on_step=lambda: None, loss=task.loss,
        clock=clock_of(device),
    )  # fmt: skip
    return {"growth": growth, "small": small_cost, "curve": [_point(p) for p in curve]}


def grow(
    task: Task, recipe: Recipe, small: nn.Module, large: nn.Module, seed: int, device: torch.device
) -> dict[str, Any]:
    """Writes the grown weights into `large`; returns what that cost."""
    op = lf.GrowthOperator(
        small, large, method=recipe.method, seed=seed, noise=recipe.noise, **recipe.options
    )
    if not op.is_learned:
        op.apply_()
        return {"flops": 0.0, "seconds": 0.0}
    batches = task.batches(seed, task.config.batch // LEARN_SHARE, device)
    learn = {**recipe.learn, "optimizer": getattr(torch.optim, recipe.learn.get("optimizer", "AdamW"))}
    loss = taught_by(small, recipe.teacher) if recipe.teacher else task.loss
    clock = clock_of(device)
    start = clock()
    learned = lf.learn(op, [batches[k] for k in range(1, recipe.steps + 1)], recipe.steps, loss=loss, **learn)
    step = training_flops(large, batches[0]) + op.flops("apply") + op.flops("pullback")
    if recipe.teacher:
        step += training_flops(small, batches[0]) / 3  # its forward pass
    return {"flops": recipe.steps * step, "seconds": clock() - start, "losses": learned.losses[::10]}


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


def taught_by(small: nn.Module, share: float) -> Any:
    """A loss that mixes the labels' with the divergence from the small model's predictions."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        out = model(**batch)
        with torch.no_grad():
            wanted = small(**batch).logits.log_softmax(-1)
        apart = nn.functional.kl_div(out.logits.log_softmax(-1), wanted, log_target=True, reduction="none")
        return (1 - share) * out.loss + share * apart.sum(-1).mean()

    return loss


def _point(point: Point) -> list[float]:
    return [point.step, point.cost.flops, round(point.cost.seconds, 3), round(point.loss, 5)]


def work(task: Task, recipe: Recipe, setting: Setting, folder: Path, device: str) -> dict[str, Any]:
    """`run` in a process of its own, on one thread."""
    torch.set_num_threads(1)
    return run(task, recipe, setting, folder, torch.device(device))
