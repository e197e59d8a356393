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
from ..maps import Identity, Map
from ..operator import GrowthOperator
from ..plan import Piece

VECTORS = 4
EXACT = torch.finfo(torch.float64).eps
Matrix = Tensor | None
Check = dict[str, bool | float]
Checks = dict[str, Check]


def is_green(checks: Checks) -> bool:
    return bool(checks) and all(check["green"] for check in checks.values())


def is_near(checks: Checks, dtype: torch.dtype) -> bool:
    """Whether half of the digits are right: the same thing was computed, maybe with more rounding errors."""
    return bool(checks) and all(check["ours"] <= torch.finfo(dtype).eps ** 0.5 for check in checks.values())


def inexact(checks: Checks) -> str:
    """What is wrong, for one that is not green."""
    wrong = [
        f"{kind}: error {c['ours']:.1e}, plain torch's {c['plain']:.1e}"
        for kind, c in checks.items()
        if not c["green"]
    ]
    return f"the result is not as exact as it has to be ({'; '.join(wrong)})"


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
                u, v, mix = self._maps(piece)
                columns = piece.large_slot.of(large[piece.large[0]]).shape[1]
                x = torch.randn(columns, VECTORS, generator=self._random, dtype=torch.float64)
                x = x.to(self.op.device)
                small = self._sources(piece)
                along = torch.stack([w.double() @ _adjoint(v, x) for w in small])
                ours, plain = errors["vectors" if columns == 1 else "matrices"]
                for layer, name in enumerate(piece.large):
                    truth = _product(u, torch.tensordot(mix[layer], along, 1))
                    y = piece.large_slot.of(large[name])
                    ours.append(_error(y.double() @ x, truth))
                    if layer == len(piece.large) // 2:  # one stands for the others
                        plain.append(_error(_plain(small, mix[layer], u, v).double() @ x, truth))
                longest = max(longest, *y.shape)
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
            sizes = piece.large_slot.of(self.op.large.get_parameter(piece.large[0])).shape
            a, b = (self._powers(len(piece.large), n) for n in sizes)
            for layer, name in enumerate(piece.large):
                g = self.op.large.get_parameter(name).grad
                if g is None:
                    raise GrowthError(f"parameter {name} has no gradient to write to")
                piece.large_slot.of(g).copy_(torch.outer(a[layer], b[layer]))
            left, right = a if u is None else a @ u, b if v is None else b @ v  # (L2, o1), (L2, i1)
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
        cut = self.op.precision == "bf16" and self.op.device.type == "cuda"  # torch's backend has float32
        rounding = torch.finfo(torch.bfloat16).eps if cut else EXACT
        checks = {k: check(_mean(a), _mean(b), 3.0, rounding) for k, (a, b) in errors.items()}
        for one in checks.values():
            one["green"] = bool(one["green"] and one["plain"] <= half)
        return checks

    def _maps(self, piece: Piece) -> tuple[Matrix, Matrix, Tensor]:
        """U, V and D in float64, differentiable in the factors; None is the identity, say of a vocabulary."""
        assert isinstance(piece.rows, Map) and isinstance(piece.cols, Map)
        u, v = self._matrix(piece.rows), self._matrix(piece.cols)
        mix = None if piece.depth is None else self._matrix(piece.depth)
        if mix is None:
            mix = torch.eye(len(piece.large), dtype=torch.float64, device=self.op.device)
        return u, v, mix

    def _matrix(self, m: Map) -> Matrix:
        if isinstance(m, Identity):
            return None
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


def _product(m: Matrix, x: Tensor) -> Tensor:
    return x if m is None else m @ x


def _adjoint(m: Matrix, x: Tensor) -> Tensor:
    return x if m is None else m.t() @ x


def _plain(small: list[Tensor], mix: Tensor, u: Matrix, v: Matrix) -> Tensor:
    """A layer as torch computes it in the weights' dtype."""
    dtype = small[0].dtype
    blended = torch.zeros_like(small[0])
    for coefficient, w in zip(mix.tolist(), small, strict=True):
        if coefficient:
            blended.add_(w, alpha=coefficient)
    y = blended if u is None else u.to(dtype) @ blended
    return y if v is None else y @ v.to(dtype).t()


def check(ours: float, plain: float, allowed: float, rounding: float = 0.0) -> Check:
    """Our error beside plain torch's; one that is not a number is red."""
    return {"green": ours <= max(allowed * plain, rounding), "ours": ours, "plain": plain, "allowed": allowed}


def _error(found: Tensor, truth: Tensor) -> Tensor:
    norm = truth.norm()
    error: Tensor = (found - truth).norm() / norm if float(norm) else found.norm()
    return error


def _mean(errors: list[Tensor]) -> float:
    return float(torch.stack(errors).square().mean().sqrt())
