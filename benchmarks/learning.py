"""What learning the operator adds to a plain training step of the large model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Clock, Summary, Times, interleave, ratio, summarize
from ligo_fast.bench.cases import Case

Batch = dict[str, Tensor]


def random_batch(case: Case, seed: int = 0) -> Batch:
    """Token numbers and labels at 15% of the positions."""
    generator = torch.Generator().manual_seed(seed)
    assert case.batch is not None
    tokens = torch.randint(case.pair.large["vocab_size"], case.batch, generator=generator)
    chosen = torch.rand(tokens.shape, generator=generator) < 0.15
    return {"input_ids": tokens, "labels": tokens.masked_fill(~chosen, -100)}


def forward_backward(model: nn.Module, batch: Batch, micro_batches: int) -> None:
    """One accumulated gradient of the masked language model's loss."""
    model.zero_grad()
    for _ in range(micro_batches):
        (model(**batch).loss / micro_batches).backward()


def step_times(large: nn.Module, optimizer: Any, case: Case, rounds: int, clock: Clock) -> Times:
    """Seconds of a forward and backward pass, and of `step()` after it, in turn."""
    batch = random_batch(case)
    parts: dict[str, Callable[[], object]] = {
        "plain": lambda: forward_backward(large, batch, 1),
        "step": optimizer.step,
    }
    return interleave(parts, rounds, clock=clock)


def accumulated_times(
    large: nn.Module, optimizer: Any, case: Case, micro_batches: int, clock: Clock
) -> Times:
    """Seconds of one accumulated gradient, and of `step()` on it as many times as there are micro-batches.

    The passes take minutes and are timed once; `step()` does the same work every time.
    """
    batch = random_batch(case)
    start = clock()
    forward_backward(large, batch, micro_batches)
    seconds = clock() - start
    parts: dict[str, Callable[[], object]] = {"step": optimizer.step}
    steps = interleave(parts, micro_batches, warmups=0, clock=clock)
    return {"plain": [seconds] * micro_batches} | steps


def overhead(times: Times) -> dict[str, Summary]:
    """What learning adds to a plain step: `GrowthOptimizer.step()` over the passes before it."""
    plain, step = times.values()
    return {
        "plain seconds": summarize(plain),
        "step seconds": summarize(step),
        "step / plain": ratio(step, plain),
    }
