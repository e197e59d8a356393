"""The methods of the study: how the large model starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A method with its options and, for a learned one, how it is learned.

    Attributes:
        method: as `lf.GrowthOperator` takes it; None starts from scratch.
        options: of the method.
        noise: as `lf.GrowthOperator` takes it.
        learn: options of `lf.learn`; "optimizer" is a name in torch.optim.
        steps: steps of learning, each on a quarter of a batch.
        teacher: weight of the divergence from the small model's outputs in the loss of learning.
        brief: grow a small model that was trained only for this, and pay for it.
    """

    method: str | None
    options: dict[str, Any] = field(default_factory=dict)
    noise: float = 0.0
    learn: dict[str, Any] = field(default_factory=dict)
    steps: int = 100
    teacher: float = 0.0
    brief: bool = False


PAPER: dict[str, Any] = {"tie": True, "width_init": "random"}
RECIPES = {
    "scratch": Recipe(None),
    "random": Recipe("random"),
    "stack": Recipe("copy+stack"),
    "interpolate": Recipe("copy+interpolate"),
    "net2net+stack": Recipe("net2net+stack"),
    "aki+stack": Recipe("aki+stack"),
    "tile+stack": Recipe("tile+stack"),
    "tile+stack, noise": Recipe("tile+stack", noise=0.5),
    "pad+zero": Recipe("pad+zero"),
    # AdamW at 2e-4 under a warm-up of 10000 steps, of which 100 are taken
    "ligo, as published": Recipe("ligo", PAPER | {"per_layer": "target"}, learn={"lr": 2e-6, "warmup": 100}),
    "ligo, as the paper says": Recipe("ligo", PAPER, learn={"optimizer": "SGD", "lr": 0.3}),
    "ligo": Recipe("ligo"),
    "ligo, brief small model": Recipe("ligo", brief=True),
    # tried for better defaults
    "pad+ligo": Recipe("pad+ligo"),
    "net2net+ligo": Recipe("net2net+ligo"),
    "random+ligo": Recipe("random+ligo"),
    "random+stack": Recipe("random+stack"),
    "random+zero": Recipe("random+zero"),
    "random+interpolate": Recipe("random+interpolate"),
    "net2net+zero": Recipe("net2net+zero"),
    "pad+stack": Recipe("pad+stack"),
    "pad+interpolate": Recipe("pad+interpolate"),
    "ligo, 25 steps": Recipe("ligo", steps=25),
    "ligo, 300 steps": Recipe("ligo", steps=300),
    "ligo, teacher": Recipe("ligo", teacher=0.5),
    "ligo+interpolate": Recipe("ligo+interpolate"),
    "ligo+zero": Recipe("ligo+zero"),
    "ligo, C by tiles with noise": Recipe("ligo", {"width_init": "tile", "width_noise": 0.3}),
}
