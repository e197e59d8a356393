"""One GPT-2, one training loop, one way to evaluate, for every method alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ..training.learning import Loss, model_loss
from .config import Config
from .cost import Cost
from .data import VOCABULARY, Batches


@dataclass(frozen=True)
class Point:
    """The validation loss after a number of steps, and what the steps cost."""

    step: int
    cost: Cost
    loss: float


def initial_spread(width: int) -> float:
    """Standard deviation of initial weights: 0.02 at 768 units, and as large an output at any other width.

    With 0.02 at every width narrow models hardly begin to learn, and scratch is no opponent.
    """
    return 0.02 * math.sqrt(768 / width)


def build_gpt2(width: int, depth: int, config: Config, device: torch.device) -> nn.Module:
    """A new byte-level GPT-2 without dropout; its GELU is the exact one, of which torch has a fast kernel."""
    torch.manual_seed(config.seed)
    model: nn.Module = GPT2LMHeadModel(
        GPT2Config(
            initializer_range=initial_spread(width),
            vocab_size=VOCABULARY,
            n_positions=config.length,
            n_embd=width,
            n_layer=depth,
            n_head=width // config.head_dim,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
    )
    return model.to(device)


def make_optimizer(model: nn.Module, lr: float, config: Config) -> torch.optim.Optimizer:
    """AdamW over the model's parameters."""
    return torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )


def train(
    model: nn.Module,
    batches: Batches,
    validation: Sequence[dict[str, Tensor]],
    config: Config,
    *,
    steps: int,
    lr: float,
    warmup: int,
    step_flops: float,
    on_step: Callable[[], object],
    optimizer: torch.optim.Optimizer | None = None,
    loss: Loss = model_loss,
    clock: Callable[[], float] = time.perf_counter,
    until: Callable[[Point], bool] = lambda point: False,
) -> list[Point]:
    """Trains in place and returns the validation curve, which starts before the first step.

    Evaluation takes no part in the cost. ``on_step`` is called after each step. ``optimizer`` comes from
    ``make_optimizer`` with the same ``lr``; a new one if left out. ``loss`` is of a model and a batch;
    ``clock`` tells the seconds. Training ends early after an evaluation that ``until`` answers with True.
    """
    optimizer = optimizer or make_optimizer(model, lr, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(step, steps, warmup, config.final_lr)
    )
    parameters = list(model.parameters())
    model.train()
    curve = [Point(0, Cost(), evaluate(model, validation, loss))]
    seconds = 0.0
    start = clock()
    for step in range(1, steps + 1):
        loss(model, batches[step]).backward()
        nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        on_step()
        if step % config.evaluate_every == 0 or step == steps:
            synchronize(batches.device)
            seconds += clock() - start
            curve.append(Point(step, Cost(step * step_flops, seconds), evaluate(model, validation, loss)))
            if until(curve[-1]):
                break
            start = clock()
    return curve


def rate(step: int, steps: int, warmup: int, final: float) -> float:
    """The learning rate as a share of its peak: linear warm-up, then half a cosine down to ``final``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def evaluate(model: nn.Module, validation: Sequence[dict[str, Tensor]], loss: Loss = model_loss) -> float:
    """Mean validation loss in nats a byte."""
    losses = [loss(model, batch) for batch in validation]
    return torch.stack(losses).mean().item()


def synchronize(device: torch.device) -> None:
    """Waits for the work a GPU still has queued, so that clocks read true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
