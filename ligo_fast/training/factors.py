"""An operator's factors as an optimizer has them: in two groups, and as a state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import GrowthError

if TYPE_CHECKING:
    from ..operator import GrowthOperator


def learned_factors(op: GrowthOperator) -> dict[str, nn.Parameter]:
    """The factors that are not frozen (`requires_grad` False), by name."""
    return {n: p for n, p in op.named_parameters() if p.requires_grad}


def check_learns(op: GrowthOperator) -> None:
    """Raises GrowthError unless an operator has a factor that is not frozen."""
    if not any(p is not None and p.requires_grad for p in op._parameters.values()):
        frozen = f": all {len(op._parameters)} are frozen (requires_grad)" if op.is_learned else ""
        raise GrowthError(
            f"method {op.growth.method!r} has no factors to learn{frozen}; call apply_() instead"
        )


def factor_groups(op: GrowthOperator, depth_lr: float) -> list[dict[str, Any]]:
    """Width and depth factors as groups of an optimizer; `lr_scale` is a group's share of the rate.

    Frozen factors are in none.
    """
    factors = learned_factors(op).items()
    groups = [
        {"params": [p for n, p in factors if not n.startswith("depth/")], "lr_scale": 1.0},
        {"params": [p for n, p in factors if n.startswith("depth/")], "lr_scale": depth_lr},
    ]
    return [g for g in groups if g["params"]]


def factor_state(op: GrowthOperator) -> dict[str, Tensor]:
    """A copy of the factors by name."""
    return {n: p.detach().clone() for n, p in op.named_parameters()}


def check_factors(op: GrowthOperator, given: dict[str, Tensor]) -> None:
    """Whether `given` are factors of such an operator.

    Raises:
        GrowthError: when they are another operator's, naming the first that differs.
    """
    factors = dict(op.named_parameters())
    if factors.keys() != given.keys():
        odd = sorted(factors.keys() ^ given.keys())[0]
        raise GrowthError(f"the state is another operator's: factor {odd} is only on one side")
    for name, p in factors.items():
        if p.shape != given[name].shape:
            raise GrowthError(
                f"factor {name}: {tuple(given[name].shape)} in the state, {tuple(p.shape)} here"
            )


def load_factors(op: GrowthOperator, given: dict[str, Tensor]) -> bool:
    """Write the factors; whether that changed any."""
    factors = dict(op.named_parameters())
    same = all(torch.equal(p, given[name].to(p.device)) for name, p in factors.items())
    with torch.no_grad():
        for name, p in factors.items():
            p.copy_(given[name])
    return not same
