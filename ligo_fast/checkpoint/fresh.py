"""Weights as a model's constructor draws them, for files, where no model is built.

Norms are ones, biases zeros, all else normal numbers whose standard deviation the config says (an embedding's
padding row, too, which a constructor leaves zero). They depend on the seed and the parameter's name only: not
on shards, devices or what is grown before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.tables import parse
from ..native.noise import normal
from ..operator import GrowthOperator

SPREAD = 0.02  # of the models with a table, where the config says nothing
BLOCK = 1 << 22  # numbers drawn at a time, in float32


@torch.no_grad()
def draw_(t: Tensor, name: str, op: GrowthOperator) -> None:
    """Fill a parameter of the large model, contiguous and of any floating dtype."""
    architecture = op.growth.architecture
    row = architecture.lookup(name)
    assert row is not None
    pattern, _, dims = row
    roles = {term.role.rstrip("+") for terms in parse(dims) for term in terms}
    if "gain" in roles or t.dim() == 1:
        t.fill_("gain" in roles)
        return
    config, factor = op.large.config, architecture.scaled.get(pattern, lambda c: 1.0)
    spread = getattr(config, architecture.spread, None)
    spread = (SPREAD if spread is None else float(spread)) * factor(config)
    seed = op._context.seed_of(f"fresh/{name}")
    for block, out in enumerate(t.view(-1).split(BLOCK)):
        out.copy_(normal(out.shape, seed, block, t.device).mul_(spread))
