"""One run: a small model (trained once for a task and seed), grown by a recipe, trained like scratch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

import ligo_fast as lf
from benchmarks.savings.growth import clock_of, grow, slow_down_old, step_flops
from benchmarks.savings.kept import name_of, once
from benchmarks.savings.recipes import Recipe
from benchmarks.savings.tasks import Task
from ligo_fast.demo.train import Point, make_optimizer, train


@dataclass(frozen=True)
class Setting:
    """What a run depends on beside its task and recipe."""

    lr: float
    warmup: int
    seed: int


@dataclass(frozen=True)
class Until:
    """Where a run of the search may stop, as nothing later changes what the search chooses.

    At the validation loss that it is judged by, or after as many FLOPs of training as the best run needed so
    far: then it is worse.
    """

    loss: float
    flops: float

    def __call__(self, point: Point) -> bool:
        return point.loss <= self.loss or point.cost.flops >= self.flops


def small_model(
    task: Task, seed: int, brief: bool, folder: Path, device: torch.device
) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Any]]:
    """The trained small model, its optimizer and what it cost; the first process that asks trains it."""
    config = replace(task.config, seed=seed, evaluate_every=task.config.small_steps)  # at the end
    model = task.model(False, seed, device)
    optimizer = make_optimizer(model, config.lr, config)
    name = name_of(task, seed, *(["brief"] if brief else []))
    weights, moments = (folder / f"{name}{end}.safetensors" for end in ("", "-adam"))

    def make() -> dict[str, Any]:
        curve = train(
            model, task.batches(seed, config.batch, device), task.validation(seed, device), config,
            optimizer=optimizer, steps=task.brief_steps if brief else config.small_steps, lr=config.lr,
            warmup=config.warmup, step_flops=step_flops(task, False, config.batch, device),
            on_step=lambda: None, loss=task.loss, clock=clock_of(device),
        )  # fmt: skip
        save_model(model, str(weights))
        past = optimizer.state_dict()["state"]
        save_file({f"{n} {key}": t for n, state in past.items() for key, t in state.items()}, moments)
        cost = curve[-1].cost
        return {"flops": cost.flops, "seconds": cost.seconds, "loss": curve[-1].loss}

    facts = once(folder, name, make)
    load_model(model, weights)
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, t in load_file(moments).items():
        number, name = key.split()
        state[int(number)][name] = t
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return model, optimizer, facts


def run(
    task: Task,
    recipe: Recipe,
    setting: Setting,
    folder: Path,
    device: torch.device,
    until: Until | None = None,
) -> dict[str, Any]:
    """Curve (step, FLOPs, seconds, loss), the cost of growing and of the small model."""
    config, seed = replace(task.config, seed=setting.seed), setting.seed
    batches = task.batches(seed, config.batch, device)
    large = task.model(True, seed, device)
    flops = step_flops(task, True, config.batch, device)
    optimizer = make_optimizer(large, setting.lr, config)
    growth, small_cost = {"flops": 0.0, "seconds": 0.0}, {"flops": 0.0, "seconds": 0.0}
    if recipe.method is not None:
        small, small_optimizer, small_cost = small_model(task, seed, recipe.brief, folder, device)
        op, growth = grow(task, recipe, small, large, seed, folder, device)
        lf.grow_optimizer(op, small_optimizer, optimizer, recipe.moments)
    if recipe.slow_old:
        slow_down_old(optimizer, task, seed, recipe.slow_old, device)
    curve = train(
        large, batches, task.validation(seed, device), config, optimizer=optimizer, steps=config.steps,
        lr=setting.lr, warmup=setting.warmup, step_flops=flops, on_step=lambda: None, loss=task.loss,
        clock=clock_of(device), until=until or (lambda point: False),
    )  # fmt: skip
    return {"growth": growth, "small": small_cost, "curve": [_point(p) for p in curve]}


def _point(point: Point) -> list[float]:
    return [point.step, point.cost.flops, round(point.cost.seconds, 3), round(point.loss, 5)]


def work(
    task: Task, recipe: Recipe, setting: Setting, folder: Path, device: str, until: Until | None
) -> dict[str, Any]:
    """`run` in a process of its own, on one thread."""
    torch.set_num_threads(1)
    return run(task, recipe, setting, folder, torch.device(device), until)
