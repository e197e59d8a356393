"""Padding: new units produce zero, so whatever reads them is free (Gesmundo & Maile 2023; LEMON 2024).

Consumers of new units copy the weights of random old ones, which keeps gradients alive. On the residual
stream the norm must not notice the new units. RMSNorm: units zero, gain times sqrt(n1 / n2), eps times
n1 / n2. LayerNorm: as many whole tiles as fit, the rest of the units equal to the mean of the old ones,
gain times sqrt(k n1 / n2) and eps times k n1 / n2 for k tiles (Wang et al., LEMON, sec. 4).
"""

import torch

from ..axes import Axis, AxisMaps, Context
from ..maps import PrefixDiagonal, Selection
from . import width


@width("pad")
def pad(axis: Axis, context: Context) -> AxisMaps:
    """Exact with RMSNorm and with pre-norm LayerNorm."""
    n1, n2 = axis.small, axis.large
    tiles = max(n2 // n1, 1) if axis.norm == "layer" else 1
    kept = tiles * n1
    old = torch.arange(kept) % n1
    # every old unit is copied once before any is copied twice: copies of one unit stay alike
    order = torch.randperm(n1, generator=context.rng(axis.name))
    index = torch.cat([old, order[torch.arange(n2 - kept) % n1]])
    is_old = (torch.arange(n2) < kept).double()
    zero_rest = Selection(index, n1, is_old)
    into = Selection(index, n1, is_old / tiles + (1 - is_old))
    if axis.name == "group":
        # a zero query still attends: a new head of an old group may be any head, and is not read
        return AxisMaps(Selection(index, n1), zero_rest)
    if axis.norm is None:
        return AxisMaps(zero_rest, into)
    ratio = kept / n2
    gain = Selection(index, n1, torch.full((n2,), ratio**0.5, dtype=torch.float64))
    if axis.norm == "rms":
        return AxisMaps(zero_rest, into, gain, zero_rest, gain, zero_rest, eps_scale=ratio)
    rows = torch.eye(n1, dtype=torch.float64)[old[n1:]]
    mean = torch.full((n2 - kept, n1), 1 / n1, dtype=torch.float64)
    out = PrefixDiagonal(torch.cat([rows, mean]))
    # a tied head reads with U, whose tiles add up to `tiles` times the function; its mean rows read zeros
    final = (Selection(m.index, n1, m.scale / tiles) for m in (gain, zero_rest) if m.scale is not None)
    final_gain, final_shift = final
    return AxisMaps(out, into, gain, zero_rest, final_gain, final_shift, eps_scale=ratio)
