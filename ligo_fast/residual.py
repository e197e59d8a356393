"""What a growth adds to U (D W) V^T: the target's own values in new units, or noise that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .axes import Context
from .compute.order import first
from .maps import Selection
from .native.noise import normal
from .plan import Piece
from .processes.sharded import Part


def keep_new(out: Tensor, before: Tensor, piece: Piece) -> None:
    """Put back what the target had in rows and columns of new units."""
    masks: list[Tensor] = []
    for m in (piece.rows, piece.cols):
        scale = m.scale if isinstance(m, Selection) else None
        n = out.shape[len(masks)]
        masks.append(torch.ones(n, dtype=torch.bool, device=out.device) if scale is None else scale != 0)
    out.copy_(torch.where(masks[0][:, None] & masks[1][None, :], out, before))


def add_noise(
    outs: Sequence[Tensor],
    sources: Sequence[Tensor],
    part: Part,
    noise: float,
    context: Context,
    dtype: torch.dtype,
) -> None:
    """outs += N (I - S V^T) on a consumed axis that arrives as S x: zero on every S x as V^T S = I.

    A layer that D scales by zero stays zero: what it consumes may be no S x, but the target's own.
    N is drawn for the whole layer, so that every process adds its own part of the same; it has the same bits
    on every device. Its seed follows from the piece's name and block, not from its number: the order of
    parameters in files is not that in memory.
    """
    whole = part.whole
    seed = context.seed_of(f"noise/{whole.name}/{whole.large_slot.start}")
    shape = [first(m).shape[0] for m in (whole.rows, whole.cols)]
    scale = whole.depth.scale if isinstance(whole.depth, Selection) else None
    adds = [True] * len(outs) if scale is None else (scale != 0).tolist()
    for dim, pair in enumerate((whole.noise_rows, whole.noise_cols)):
        if pair is None:
            continue
        arrives, into = pair
        std = float(torch.stack([s.detach().to(dtype).std() for s in sources]).mean()) * noise
        for layer, out in enumerate(outs):
            if not adds[layer]:
                continue
            n = normal(shape, seed, dim * len(outs) + layer, out.device).to(dtype) * std
            n = n if dim == 0 else n.t()
            n = n - into.left(arrives.left_adjoint(n))
            n = n if dim == 0 else n.t()
            out.add_(n[slice(*part.rows), slice(*part.cols)].to(out.dtype))
