"""Where the gradients of a map's factors are added: the same map over other tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..maps import Map
from .order import Maps


def make_gradients(factors: Iterable[Tensor]) -> None:
    """A `.grad` of zeros for each factor without one; not in inference mode, as it lives on."""
    for factor in factors:
        if factor.grad is None:
            factor.grad = torch.zeros_like(factor)


def gradient_maps(maps: Maps | None) -> Any:
    """Maps whose tensors are the `.grad`s of the learned factors; None where nothing is learned.

    Frozen factors (`requires_grad` False) are not learned, whatever gradient they have.
    """
    if maps is None:
        return None
    each = [maps] if isinstance(maps, Map) else list(maps)
    if not any(wants_gradient(t) and t.grad is not None for m in each for t in m.factors().values()):
        return None
    made = [m.replace({k: _gradient(t) for k, t in m.factors().items()}) for m in each]
    return made[0] if isinstance(maps, Map) else made


def wants_gradient(factor: Tensor) -> bool:
    """Whether a factor is learned: a parameter that is not frozen."""
    return isinstance(factor, nn.Parameter) and factor.requires_grad


def _gradient(factor: Tensor) -> Tensor:
    """A fixed factor beside a learned one gets a scratch gradient."""
    grad = factor.grad if wants_gradient(factor) else None
    return torch.zeros_like(factor) if grad is None else grad
