"""The experiment: one small model, grown by every method, every result trained on the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from tqdm import tqdm

import ligo_fast as lf

from .config import Config
from .cost import training_flops
from .data import Batches, Corpus
from .growth import SCRATCH, grow, is_learned
from .report import Run
from .train import Point, build_gpt2, train

# The validation windows are the same for every seed.
VALIDATION_SEED = 999


@dataclass(frozen=True)
class Results:
    """The small model's curve, one run a method, and the last learned operator."""

    small: list[Point]
    runs: list[Run]
    operator: lf.GrowthOperator | None


def run_experiment(config: Config, methods: Sequence[str], corpus: Corpus, device: torch.device) -> Results:
    """Trains, grows, trains on; the bar counts the models' FLOPs."""
    batches = Batches(corpus.train, config.batch, config.length, config.seed, device)
    learn_batches = replace(batches, rows=config.learn_batch)
    windows = Batches(corpus.validation, config.evaluate_batch, config.length, VALIDATION_SEED, device)
    validation = [windows[0]]
    small = build_gpt2(config.small_width, config.small_depth, config, device)
    small_flops = training_flops(small, batches[0])
    large_flops = training_flops(build_gpt2(config.width, config.depth, config, device), batches[0])
    learn_flops = large_flops * config.learn_batch / config.batch

    learned = sum(map(is_learned, methods))
    total: float = small_flops * config.small_steps + large_flops * config.steps * len(methods)
    total += learn_flops * config.learn_steps * learned
    bar = tqdm(total=total, unit="FLOP", unit_scale=True, dynamic_ncols=True)

    bar.set_description("small model")
    small_curve = train(
        small,
        batches,
        validation,
        config,
        steps=config.small_steps,
        lr=config.lr,
        warmup=config.warmup,
        step_flops=small_flops,
        on_step=partial(bar.update, small_flops),
    )
    runs: list[Run] = []
    operator: lf.GrowthOperator | None = None
    for method in methods:
        bar.set_description(method)
        try:
            growth = grow(method, small, learn_batches, config, learn_flops, partial(bar.update, learn_flops))
        except lf.GrowthError as error:
            bar.write(f"{method} left out: {error}")
            bar.total -= large_flops * config.steps + learn_flops * config.learn_steps * is_learned(method)
            continue
        curve = train(
            growth.model,
            batches,
            validation,
            config,
            steps=config.steps,
            lr=config.lr if method == SCRATCH else config.grown_lr,
            warmup=config.warmup if method == SCRATCH else config.grown_warmup,
            step_flops=large_flops,
            on_step=partial(bar.update, large_flops),
        )
        runs.append(Run(method, growth.cost, growth.losses, curve, uses_small=method != SCRATCH))
        operator = growth.operator or operator
    bar.close()
    return Results(small_curve, runs, operator)
