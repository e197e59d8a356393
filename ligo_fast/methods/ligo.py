"""LiGO (Wang et al., ICLR 2023): learned maps tied across the network through the axis names.

Width: U = [I; C] with C learned, on embed, q, k, v and ffn; consumers use the same map (the paper's table
of ties). Depth: D learned per family, weights and biases apart. Under rotary positions C mixes whole heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..arguments import check_amount
from ..axes import Axis, AxisMaps, Context, Family, PerLayer
from ..errors import GrowthError
from ..maps import Dense, Identity, Map, PrefixDiagonal, kron
from . import depth, width
from .interpolate import interpolate
from .stack import stack


def new_rows(axis: Axis, init: str, noise: float, rng: torch.Generator) -> Tensor:
    """C (n_large - n_small, n_small): how new units start as mixes of old ones."""
    new, old = axis.large - axis.small, axis.small
    if init == "random":  # rows sum to one, as in the published code
        rows = torch.rand(new, old, generator=rng, dtype=torch.float64)
        rows /= rows.sum(1, keepdim=True)
    elif init == "selection":
        rows = torch.eye(old, dtype=torch.float64)[torch.randint(old, (new,), generator=rng)]
    elif init == "normal":  # random mixes that keep a unit's size
        rows = torch.randn(new, old, generator=rng, dtype=torch.float64)
        rows *= 1 / old**0.5
    elif init == "tile":
        rows = torch.eye(old, dtype=torch.float64)[torch.arange(old, axis.large) % old]
    else:
        raise GrowthError(f"width_init={init!r} is none of 'random', 'normal', 'selection', 'tile'")
    if noise := check_amount("width_noise", noise):
        spread: float = noise / old**0.5
        rows += spread * torch.randn(rows.shape, generator=rng, dtype=torch.float64)
    return rows


def _learned(diag: Tensor, rows: Tensor, form: str, learn_diag: bool = False) -> Map:
    """[diag; C] as a learned map."""
    if form == "dense":
        return Dense(torch.cat([diag.diag(), rows]).requires_grad_())
    if form != "prefix":
        raise GrowthError(f"form={form!r} is neither 'prefix' nor 'dense'")
    scale = diag.clone().requires_grad_() if learn_diag else None
    return PrefixDiagonal(rows.clone().requires_grad_(), scale)


def _basic(
    axis: Axis, context: Context, width_init: str, width_noise: float, tie: bool, form: str, copy: str
) -> AxisMaps:
    """The learned maps of an axis seen as one piece; the same axis and copy give the same maps."""
    key = (axis.name, axis.tag, copy)

    def make(role: str, build: Callable[[], Map]) -> Map:
        full = (*key, role)
        if full not in context.cache:
            context.cache[full] = build()
        return context.cache[full]

    if not axis.grows:
        return AxisMaps(Identity(axis.small))

    @functools.cache
    def rows() -> Tensor:
        return new_rows(axis, width_init, width_noise, context.rng("/".join(key)))

    def v() -> Map:
        # starts where V^T U = I: shared among copies, or new units not read when U has no copies
        if width_init in ("selection", "tile"):
            copies = 1 + rows().sum(0)
            return _learned(1 / copies, rows() / copies, form, learn_diag=True)
        return _learned(ones, torch.zeros(size, dtype=torch.float64), form, learn_diag=True)

    ones, size = torch.ones(axis.small, dtype=torch.float64), (axis.large - axis.small, axis.small)
    out = make("out", lambda: _learned(ones, rows(), form))
    if tie:
        return AxisMaps(out)
    into, final = make("into", v), make("final", v) if axis.norm else None
    return AxisMaps(out, into, final_gain=final, final_shift=final)


@width("ligo", composed=True)
def ligo(
    axis: Axis,
    context: Context,
    *,
    width_init: str = "normal",
    width_noise: float = 0.0,
    tie: bool = False,
    form: str = "prefix",
    per_layer: str = "none",
) -> AxisMaps | PerLayer:
    """Learned width maps; the defaults saved more than the paper's on GPT-2 and ViT, less on BERT.

    The paper: tie=True, width_init="random". The published code: per_layer="target" beside these.

    Args:
        width_init: C starts as "random" (row-stochastic), "normal" (mixes of unit size), "selection" or
            "tile" (of old units).
        width_noise: standard deviation of noise on C, times 1 / sqrt(n_small).
        tie: V = U. False: V is learned apart and starts so that V^T U = I.
        form: "prefix" ([I; C]) or "dense" (every entry learned).
        per_layer: "none" (shared), "target" (the published code) or "source" (the paper's Eq. 6): maps of
            every axis but the residual stream's are per target or per source layer.
    """
    if per_layer not in ("none", "target", "source"):
        raise GrowthError(f"per_layer={per_layer!r} is none of 'none', 'target', 'source'")
    options = (width_init, width_noise, tie, form)
    if per_layer == "none" or axis.norm is not None or not axis.grows:
        return _composed(axis, context, *options, "")
    layers = context.layers[per_layer == "target"]
    return PerLayer(per_layer, [_composed(axis, context, *options, str(n)) for n in range(layers)])


def _composed(
    axis: Axis, context: Context, init: str, noise: float, tie: bool, form: str, copy: str
) -> AxisMaps:
    heads_only = not axis.rotary and all(not f.grows for f in axis.factors[1:])
    if not axis.factors or heads_only:  # the paper's maps: any unit of any head may be mixed
        return _basic(axis, context, init, noise, tie, form, copy)
    parts = [_basic(f, context, init, noise, tie, form, copy) for f in axis.factors]
    out, into = parts[0].out, parts[0].role("in")
    for p in parts[1:]:
        out, into = kron(out, p.out), kron(into, p.role("in"))
    return AxisMaps(out, None if tie else into)


@depth("ligo")
def ligo_layers(
    family: Family, context: Context, *, depth_init: str = "stack", depth_noise: float = 0.03
) -> Map:
    """D learned, from stacking or interpolation plus noise.

    Args:
        depth_init: "stack" or "interpolate".
        depth_noise: U(0, depth_noise) is added and rows are made to sum to one, as in the published code.
    """
    starts = {"stack": stack, "interpolate": interpolate}
    if depth_init not in starts:
        raise GrowthError(f"depth_init={depth_init!r} is neither 'stack' nor 'interpolate'")
    start = starts[depth_init](family, context).dense()
    depth_noise = check_amount("depth_noise", depth_noise)
    noise = torch.rand(start.shape, generator=context.rng(family.name), dtype=torch.float64)
    start = start + depth_noise * noise
    return Dense((start / start.sum(1, keepdim=True)).requires_grad_())
