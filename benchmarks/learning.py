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


def learning_times(
    large: nn.Module, optimizer: Any, case: Case, micro_batches: int, rounds: int, clock: Clock
) -> Times:
    """Seconds of a plain step, and of the two parts of a learning step, in turn.

    Accumulated steps are long and repeat the short ones' work: they need no warm-up.
    """
    batch = random_batch(case)
    parts: dict[str, Callable[[], object]] = {
        "plain": lambda: forward_backward(large, batch, micro_batches),
        "learning forward and backward": lambda: forward_backward(large, batch, micro_batches),
        "GrowthOptimizer.step": optimizer.step,
    }
    return interleave(parts, rounds, warmups=1 if micro_batches == 1 else 0, clock=clock)


def overhead(times: Times) -> dict[str, Summary]:
    """(learning step - plain step) / plain step, and the optimizer's own part of it over plain.

    Without noise both are equal; the second compares a short time with a long one instead of subtracting
    two long ones.
    """
    plain, passes, step = times.values()
    learning = [a + b for a, b in zip(passes, step, strict=True)]
    added = [a - b for a, b in zip(learning, plain, strict=True)]
    return {
        "plain seconds": summarize(plain),
        "step seconds": summarize(step),
        "difference / plain": ratio(added, plain),
        "step / plain": ratio(step, plain),
    }
