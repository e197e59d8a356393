"""The float64 oracle: growth as one dense formula, slow and plain. Tests and benchmarks share it."""

from __future__ import annotations

import torch
from torch import Tensor


def grow(stack: Tensor, depth: Tensor | None, out_map: Tensor, in_map: Tensor) -> Tensor:
    """W'[l] = U (sum_j D[l, j] W[j]) V^T in float64 (LiGO, Wang et al. 2023, Eq. 5-8).

    Args:
        stack: (L1, o1, i1) weights of the small model.
        depth: (L2, L1), or None for L2 = L1 and the identity.
        out_map: (o2, o1), or (L2, o2, o1) for one map per target layer.
        in_map: (i2, i1), or (L2, i2, i1).

    Returns:
        (L2, o2, i2), float64; differentiable in every argument.
    """
    w = stack.double()
    if depth is not None:
        w = torch.einsum("lj,joi->loi", depth.double(), w)
    return out_map.double() @ w @ in_map.double().transpose(-1, -2)


def grow_per_source(stack: Tensor, depth: Tensor, out_map: Tensor, in_map: Tensor) -> Tensor:
    """W'[l] = sum_j D[l, j] U_j W[j] V_j^T in float64: one map per source layer (LiGO, Eq. 6).

    Args are those of `grow`, with out_map (L1, o2, o1) or (o2, o1), in_map (L1, i2, i1) or (i2, i1).
    """
    wide = out_map.double() @ stack.double() @ in_map.double().transpose(-1, -2)
    return torch.einsum("lj,joi->loi", depth.double(), wide)
