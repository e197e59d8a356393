"""Which backend does the work: the Triton kernels on CUDA tensors, torch everywhere else.

LIGO_FAST_BACKEND=torch keeps to torch; =triton asks for the kernels (on a CPU only under Triton's
interpreter, TRITON_INTERPRET=1, which is how they are tested without a GPU) and says why not, if not.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .dtensors import local
from .errors import GrowthError
from .maps import Map
from .plan import Piece

if TYPE_CHECKING:
    from .backend_triton import Job, Plan

PRECISIONS = ("auto", "ieee", "tf32", "bf16")
Tensors = nn.Module | dict[str, Tensor]  # a model's parameters, or others under the same names


@cache
def _without_triton() -> str:
    """Why the kernels cannot be used at all; empty when they can."""
    return "" if find_spec("triton") else "triton is not installed"


def why_not_triton(device: torch.device) -> str:
    """Why tensors on `device` are not for the kernels; empty when they are.

    Raises:
        GrowthError: when LIGO_FAST_BACKEND asks for a backend that is not there.
    """
    asked = os.environ.get("LIGO_FAST_BACKEND", "auto")
    if asked not in ("auto", "torch", "triton"):
        raise GrowthError(f"LIGO_FAST_BACKEND={asked!r} is none of 'auto', 'torch', 'triton'")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    why = _without_triton()
    if asked == "torch":
        why = "LIGO_FAST_BACKEND=torch"
    elif not why and device.type != "cuda" and not (asked == "triton" and interpreted):
        why = f"tensors on {device.type}"
    if asked == "triton" and why:
        raise GrowthError(f"LIGO_FAST_BACKEND=triton: {why}")
    return why


def resolve_precision(precision: str, dtype: torch.dtype) -> str:
    """The precision of products: "auto" follows the weights' dtype and torch's float32 matmul precision.

    Raises:
        GrowthError: for a precision that is none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise GrowthError(f"precision={precision!r} is none of {', '.join(map(repr, PRECISIONS))}")
    if precision != "auto":
        return precision
    if dtype == torch.bfloat16:
        return "bf16"
    if dtype == torch.float16:
        return "tf32"
    return {"highest": "ieee", "high": "tf32"}.get(torch.get_float32_matmul_precision(), "bf16")


class Owners:
    """The parameters that a plan is made for, and where they belong: later another may be in their place."""

    def __init__(self) -> None:
        self._modules: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._parameters: list[Tensor] = []
        self._layouts: list[tuple[Any, ...]] = []

    def own(self, tensors: Tensors, name: str) -> Tensor:
        """A parameter by its name."""
        owner: dict[str, Any] = {}
        if isinstance(tensors, nn.Module):
            module, _, key = name.rpartition(".")
            owner = tensors.get_submodule(module)._parameters
        else:
            owner, key = tensors, name
        p = owner[key]
        assert p is not None
        self._modules.append(owner)
        self._keys.append(key)
        self._parameters.append(p)
        self._layouts.append(_layout(p))
        return p

    def same(self) -> bool:
        """Whether every parameter is still the same tensor; hundreds are looked at in a few microseconds."""
        return all(map(operator.is_, map(dict.get, self._modules, self._keys), self._parameters))

    def hold(self) -> bool:
        """Whether every parameter is still the same tensor, in the same memory."""
        return self.same() and list(map(_layout, self._parameters)) == self._layouts


def _layout(t: Tensor) -> tuple[Any, ...]:
    t = local(t)
    return t.data_ptr(), t.shape, t.stride(), t.dtype, t.device


class PiecePlan:
    """The pieces of an operator that the kernels cover, bound to the parameters of two models."""

    def __init__(
        self,
        pieces: Sequence[Piece],
        small: nn.Module,
        large: nn.Module,
        factors: Sequence[Tensor],
        precision: str,
        others: Collection[int] = (),
    ) -> None:
        """`others` are numbers of pieces that something else covers."""
        from .backend_triton import Plan

        self.covered: set[int] = set()
        self.others = set(others)
        self._owners = Owners()
        numbers = [n for n, p in enumerate(pieces) if _shared(p) and not p.keep and n not in self.others]
        jobs = [self._job(pieces[n], small, large) for n in numbers]
        self.plan: Plan | None = Plan(jobs, factors, precision) if jobs else None
        if self.plan is not None:
            rejected = self.plan.rejected
            self.covered = {n for i, n in enumerate(numbers) if i not in rejected}

    def _job(self, piece: Piece, small: nn.Module, large: nn.Module) -> Job:
        from .backend_triton import Job

        sources, outs = (
            [self._owners.own(model, name) for name in names]
            for model, names in ((small, piece.small), (large, piece.large))
        )
        assert isinstance(piece.rows, Map) and isinstance(piece.cols, Map)
        return Job(
            piece.depth, piece.rows, piece.cols,
            [piece.small_slot.of(t.detach()) for t in sources],
            [piece.large_slot.of(t.detach()) for t in outs],
            sources, outs,
        )  # fmt: skip

    @property
    def is_current(self) -> bool:
        """Whether every parameter is still the tensor, of the layout, that the plan was made for."""
        return self._owners.same() and (self.plan is None or self.plan.is_current)

    def apply(self) -> None:
        """Write the parameters of the covered pieces."""
        if self.plan is not None:
            self.plan.apply()
            torch.autograd.graph.increment_version(self.plan.outs)

    def pullback(self, factors: Sequence[Tensor]) -> None:
        """Add to the factors' `.grad`s from those of the covered pieces' parameters."""
        if self.plan is not None:
            grads = [t.grad for t in self.plan.outs]
            for n, (g, stride) in enumerate(zip(grads, self.plan.out_strides, strict=True)):
                if g is not None and g.stride() != stride:  # the tables count on its parameter's
                    grads[n] = torch.empty_like(self.plan.outs[n]).copy_(g)
            self.plan.pullback(grads, [t.grad for t in factors if t.grad is not None])


def _shared(piece: Piece) -> bool:
    """Whether all layers have the same maps."""
    return isinstance(piece.rows, Map) and isinstance(piece.cols, Map)
