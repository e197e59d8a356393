"""The methods of the study: how the large model starts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
        moments: the policy of `lf.grow_optimizer`.
        slow_old: steps after growth for which old weights move at a tenth of the learning rate.
    """

    method: str | None
    options: dict[str, Any] = field(default_factory=dict)
    noise: float = 0.0
    learn: dict[str, Any] = field(default_factory=dict)
    steps: int = 100
    teacher: float = 0.0
    brief: bool = False
    moments: str = "fresh"
    slow_old: int = 0


PAPER: dict[str, Any] = {"tie": True, "width_init": "random"}
# AdamW at 2e-4 under a warm-up of 10000 steps, of which 100 are taken
PUBLISHED = Recipe("ligo", PAPER | {"per_layer": "target"}, learn={"lr": 2e-6, "warmup": 100})
COMPARED = {
    "scratch": Recipe(None),
    "random": Recipe("random"),
    "random+stack": Recipe("random+stack"),
    "stack": Recipe("copy+stack"),
    "interpolate": Recipe("copy+interpolate"),
    "net2net+stack": Recipe("net2net+stack"),
    "net2net+stack, noise 0.5": Recipe("net2net+stack", noise=0.5),
    "net2net+stack, noise 1": Recipe("net2net+stack", noise=1.0),
    "aki+stack": Recipe("aki+stack"),
    "tile+stack": Recipe("tile+stack"),
    "pad+zero": Recipe("pad+zero"),
    "ligo, as published": PUBLISHED,
    "ligo, as the paper says": Recipe("ligo", PAPER, learn={"optimizer": "SGD", "lr": 0.3}),
    "ligo": Recipe("ligo"),
    "ligo, brief small model": Recipe("ligo", brief=True),
    "random+stack, brief small model": Recipe("random+stack", brief=True),
}
TRIED = {  # for better defaults
    "net2net+stack, noise 2": Recipe("net2net+stack", noise=2.0),
    "net2net+stack, noise 0.5, old weights slowed": Recipe("net2net+stack", noise=0.5, slow_old=100),
    "net2net+identity, noise 0.5": Recipe("net2net+identity", noise=0.5),
    "tile+stack, noise 0.5": Recipe("tile+stack", noise=0.5),
    "aki+stack, noise 0.5": Recipe("aki+stack", noise=0.5),
    "random, old weights slowed": Recipe("random", slow_old=100),
    "net2net, learned depth": Recipe("net2net+ligo"),
    "random, learned depth": Recipe("random+ligo"),
    "ligo, 25 steps": Recipe("ligo", steps=25),
    "ligo, 300 steps": Recipe("ligo", steps=300),
    "ligo, teacher": Recipe("ligo", teacher=0.5),
    "ligo, C by tiles with noise": Recipe("ligo", {"width_init": "tile", "width_noise": 0.3}),
}
MOMENTS = {  # policies of `lf.grow_optimizer`; without rescaling "gradient" is "map"
    f"{name}, {policy}": replace(COMPARED[name], moments=policy)
    for name in ("stack", "net2net+stack", "random", "ligo")
    for policy in ("keep", "gradient", "map", "fresh")
    if (name, policy) not in (("stack", "gradient"), ("random", "gradient"))
}
RECIPES = COMPARED | TRIED | MOMENTS
