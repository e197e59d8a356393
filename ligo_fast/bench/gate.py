"""Is a result right? Float64 along random vectors, which costs a pass over the weights instead of products.

A wrong Y shows in Y x, compared in float64 with U (sum_j D[l, j] W[j]) V^T x (Freivalds' check, of every
element of every layer). Gradients are checked for large gradients G[l] = a[l] b[l]^T, for which
<G, Y> = sum_l a[l]^T U (sum_j D[l, j] W[j]) V^T b[l] and autograd gives every factor's gradient in float64.
Both follow from the operator's maps alone and share no code with the backends.

The rule is that of the tests: an error may be twice that of plain torch in the weights' dtype, three times
for gradients. Errors are relative to a tensor, averaged over the tensors of a kind (root mean square).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import GrowthError
from ..growth import depth_matrix
from ..maps import Map
from ..operator import GrowthOperator
from ..plan import Piece

VECTORS = 4
EXACT = torch.finfo(torch.float64).eps
Check = dict[str, bool | float]
Checks = dict[str, Check]


def is_green(checks: Checks) -> bool:
    return bool(checks) and all(check["green"] for check in checks.values())


class Gate:
    """Float64 values of an operator's results along random vectors.

    Raises:
        GrowthError: for maps that differ from layer to layer, or large weights that are kept.
    """

    def __init__(self, op: GrowthOperator, seed: int = 0) -> None:
        if not op.pieces:
            raise GrowthError(f"method {op.growth.method!r} writes nothing: there is nothing to time")
        for piece in op.pieces:
            if piece.keep or not isinstance(piece.rows, Map) or not isinstance(piece.cols, Map):
                raise GrowthError(f"method {op.growth.method!r}: no gate, nothing is timed: {piece.name}")
        self.op = op
        self._random = torch.Generator().manual_seed(seed)
        self._leaves: dict[int, Tensor] = {}
        self._dense: dict[int, Tensor] = {}

    def outputs(self, large: Mapping[str, Tensor]) -> Checks:
        """Of grown parameters by name, each in its shape."""
        errors: dict[str, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        longest = 1
        with torch.no_grad():
            for piece in self.op.pieces:
                u, v, mix = (m.detach() for m in self._maps(piece))
                x = torch.randn(len(v), VECTORS, generator=self._random, dtype=torch.float64).to(u.device)
                small = self._sources(piece)
                along = torch.stack([w.double() @ (v.t() @ x) for w in small])
                ours, plain = errors["vectors" if len(v) == 1 else "matrices"]
                for layer, name in enumerate(piece.large):
                    truth = u @ torch.tensordot(mix[layer], along, 1)
                    y = piece.large_slot.of(large[name])
                    ours.append(_error(y.double() @ x, truth))
                    if layer == len(piece.large) // 2:  # one stands for the others
                        plain.append(_error(_plain(small, mix[layer], u, v).double() @ x, truth))
                longest = max(longest, *u.shape, *v.shape)
        rounding = longest * EXACT  # of the float64 products themselves
        return {
            kind: check(_mean(ours), _mean(plain), 2.0, rounding) for kind, (ours, plain) in errors.items()
        }

    def begin_gradients(self) -> None:
        """Write a[l] b[l]^T into the large parameters' gradients: powers of two, which no dtype rounds."""
        self._leaves.clear()
        self._dense.clear()
        total = torch.zeros((), dtype=torch.float64, device=self.op.device)
        for piece in self.op.pieces:
            u, v, mix = self._maps(piece)
            a, b = self._powers(len(piece.large), len(u)), self._powers(len(piece.large), len(v))
            for layer, name in enumerate(piece.large):
                g = self.op.large.get_parameter(name).grad
                if g is None:
                    raise GrowthError(f"parameter {name} has no gradient to write to")
                piece.large_slot.of(g).copy_(torch.outer(a[layer], b[layer]))
            left, right = a @ u, b @ v  # (L2, o1), (L2, i1)
            inner = torch.stack([((left @ w.double()) * right).sum(1) for w in self._sources(piece)], 1)
            total = total + (inner * mix).sum()
        total.backward()

    def gradients(self, ours: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> Checks:
        """Of the factors' gradients by name, after `begin_gradients`; `plain` are plain torch's.

        Plain torch, which is no oracle, has to have half of its digits right itself.
        """
        errors: dict[str, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for name, p in self.op.named_parameters():
            truth = self._leaves[id(p)].grad
            if truth is not None and bool(truth.any()):
                for found, values in zip(errors[name.partition("/")[0]], (ours, plain), strict=True):
                    found.append(_error(values[name].double(), truth))
        half = torch.finfo(self.op._large_dtype).eps ** 0.5
        checks = {k: check(_mean(a), _mean(b), 3.0, EXACT) for k, (a, b) in errors.items()}
        for one in checks.values():
            one["green"] = bool(one["green"] and one["plain"] <= half)
        return checks

    def _maps(self, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
        """U, V and D in float64, differentiable in the factors."""
        assert isinstance(piece.rows, Map) and isinstance(piece.cols, Map)
        u, v = self._matrix(piece.rows), self._matrix(piece.cols)
        if piece.depth is None:
            return u, v, torch.eye(len(piece.large), dtype=torch.float64, device=u.device)
        learned = any(t.requires_grad for t in piece.depth.factors().values())
        fixed = None if learned else depth_matrix(piece.depth).to(u)
        return u, v, self._matrix(piece.depth) if fixed is None else fixed

    def _matrix(self, m: Map) -> Tensor:
        if id(m) not in self._dense:
            cast = m.replace({k: self._leaf(t) for k, t in m.factors().items()})
            eye = torch.eye(m.shape[1], dtype=torch.float64, device=self.op.device)
            self._dense[id(m)] = cast.left(eye)
        return self._dense[id(m)]

    def _leaf(self, t: Tensor) -> Tensor:
        if id(t) not in self._leaves:
            self._leaves[id(t)] = t.detach().double().requires_grad_(t.requires_grad)
        return self._leaves[id(t)]

    def _sources(self, piece: Piece) -> list[Tensor]:
        return [piece.small_slot.of(self.op.small.get_parameter(n).detach()) for n in piece.small]

    def _powers(self, *shape: int) -> Tensor:
        """Random ones of +-1/2, 1, 2: bfloat16 has their products, too."""
        power = torch.randint(-1, 2, shape, generator=self._random)
        sign = 2 * torch.randint(2, shape, generator=self._random) - 1
        return (sign * 2.0**power).double().to(self.op.device)


def _plain(small: list[Tensor], mix: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """A layer as torch computes it in the weights' dtype."""
    dtype = small[0].dtype
    blended = torch.zeros_like(small[0])
    for coefficient, w in zip(mix.tolist(), small, strict=True):
        if coefficient:
            blended.add_(w, alpha=coefficient)
    y: Tensor = u.to(dtype) @ blended @ v.to(dtype).t()
    return y


def check(ours: float, plain: float, allowed: float, rounding: float = 0.0) -> Check:
    """Our error beside plain torch's; one that is not a number is red."""
    return {"green": ours <= max(allowed * plain, rounding), "ours": ours, "plain": plain, "allowed": allowed}


def _error(found: Tensor, truth: Tensor) -> Tensor:
    norm = truth.norm()
    error: Tensor = (found - truth).norm() / norm if float(norm) else found.norm()
    return error


def _mean(errors: list[Tensor]) -> float:
    return float(torch.stack(errors).square().mean().sqrt())
