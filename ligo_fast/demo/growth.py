"""A large model by each method, with what growing it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

import ligo_fast as lf

from .config import Config
from .cost import Cost
from .data import Batches
from .train import build_gpt2, synchronize

SCRATCH = "scratch"
DEFAULT_METHODS = [SCRATCH, "net2net+stack", "ligo", "random+stack"]
ALL_METHODS = [
    SCRATCH,
    "random",
    "random+stack",
    "copy+stack",
    "net2net+stack",
    "net2net+interpolate",
    "aki+stack",
    "tile+stack",
    "pad+zero",
    "interpolate",
    "ligo",
]


@dataclass(frozen=True)
class Growth:
    """A large model ready to be trained; a learned operator comes with its losses."""

    model: nn.Module
    cost: Cost = field(default_factory=Cost)
    operator: lf.GrowthOperator | None = None
    losses: list[float] = field(default_factory=list)


def is_learned(method: str) -> bool:
    """Whether the method has factors to learn before training."""
    return "ligo" in method.split("+")


def grow(
    method: str,
    small: nn.Module,
    batches: Batches,
    config: Config,
    pass_flops: float,
    on_step: Callable[[], object],
) -> Growth:
    """Grows ``small``, or starts afresh for the method ``scratch``.

    ``batches`` are for learning an operator; ``pass_flops`` is what one of them costs in the large model.
    """
    if method == SCRATCH:
        return Growth(build_gpt2(config.width, config.depth, config, batches.device))
    if is_learned(method):
        return learn(method, small, batches, config, pass_flops, on_step)
    start = time.perf_counter()
    target = build_gpt2(config.width, config.depth, config, batches.device)
    model = lf.grow(small, target=target, method=method, seed=config.seed)
    synchronize(batches.device)
    return Growth(model, Cost(0.0, time.perf_counter() - start))


def learn(
    method: str,
    small: nn.Module,
    batches: Batches,
    config: Config,
    pass_flops: float,
    on_step: Callable[[], object],
) -> Growth:
    """Learns an operator; a step costs a pass through the large model, the growth and its pull-back."""
    large = build_gpt2(config.width, config.depth, config, batches.device)
    options: dict[str, Any] = {
        "width_init": config.width_init,
        "width_noise": config.width_noise,
        "tie": config.tie,
    }
    known = set().union(*(part.options() for part in lf.methods.resolve(method)))

    def advance(step: int, loss: float) -> None:
        on_step()

    start = time.perf_counter()
    operator = lf.GrowthOperator(
        small, large, method=method, seed=config.seed, **{k: v for k, v in options.items() if k in known}
    )
    result = lf.learn(
        operator,
        (batches[step] for step in range(1, config.learn_steps + 1)),
        steps=config.learn_steps,
        lr=config.learn_lr,
        warmup=config.learn_warmup,
        depth_lr=config.learn_depth_lr,
        progress=advance,
    )
    synchronize(batches.device)
    seconds = time.perf_counter() - start
    step_flops = pass_flops + operator.flops("apply") + operator.flops("pullback")
    return Growth(large, Cost(config.learn_steps * step_flops, seconds), operator, result.losses)
