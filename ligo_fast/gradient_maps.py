"""Where the gradients of a map's factors are added: the same map over other tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .maps import Map
from .order import Maps


def gradient_maps(maps: Maps | None) -> Any:
    """Maps whose tensors are the `.grad`s of the learned factors; None where nothing is learned."""
    if maps is None:
        return None
    if not isinstance(maps, Map):
        each = [gradient_maps(m) for m in maps]
        return None if all(m is None for m in each) else each
    factors = maps.factors()
    learned = {k: t.grad for k, t in factors.items() if isinstance(t, nn.Parameter) and t.grad is not None}
    if not learned:
        return None
    # a fixed factor beside a learned one gets a scratch gradient
    return maps.replace({k: learned[k] if k in learned else torch.zeros_like(t) for k, t in factors.items()})
