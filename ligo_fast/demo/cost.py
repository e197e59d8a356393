"""What a run costs, measured, and what a method saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """FLOPs and seconds of wall time."""

    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.seconds + other.seconds)


def training_flops(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """FLOPs of the products in one forward and backward pass, counted while they run.

    The counter knows no fused CPU attention, so attention runs as plain products here.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def crossing(x: Sequence[float], loss: Sequence[float], target: float) -> float | None:
    """Where the loss first comes down to the target, on straight lines between the points."""
    if loss[0] <= target:
        return x[0]
    for i in range(1, len(x)):
        if loss[i] <= target:
            share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
            return x[i - 1] + share * (x[i] - x[i - 1])
    return None


def saved(cost: float | None, scratch: float) -> float | None:
    """The share of scratch's cost that was not needed: 1 - F / F_scratch; negative where it cost more."""
    return None if cost is None else 1 - cost / scratch
