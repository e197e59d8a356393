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
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import GrowthError
from ..maps import Map
from ..models.owners import Owners
from ..native import layouts
from ..native.layouts import FITS, is_nowhere
from ..plan import Piece
from . import float32

if TYPE_CHECKING:
    from .backend_triton import Job, Plan

PRECISIONS = ("auto", "ieee", "tf32", "bf16")


@cache
def _without_triton() -> str:
    """Why the kernels cannot be used at all; empty when they can."""
    return "" if find_spec("triton") else "triton is not installed"


@cache
def _unsuitable(device: torch.device) -> str:
    """Why the kernels are not for a GPU; empty when they are."""
    if torch.version.hip:
        return "the kernels are not for ROCm"
    major, minor = torch.cuda.get_device_capability(device) if torch.cuda.is_available() else (8, 0)
    return "" if major >= 8 else f"the kernels are for compute capability 8.0 and later, not {major}.{minor}"


def asked_for() -> str:
    """What LIGO_FAST_BACKEND says now. To look that up takes 2 us: as long as to count 200 writes."""
    return os.environ.get("LIGO_FAST_BACKEND", "auto")


def why_not_triton(device: torch.device, asked: str | None = None) -> str:
    """Why tensors on `device` are not for the kernels; empty when they are. `asked` is for who knows it.

    Raises:
        GrowthError: when LIGO_FAST_BACKEND asks for a backend that is not there.
    """
    asked = asked_for() if asked is None else asked
    if asked not in ("auto", "torch", "triton"):
        raise GrowthError(f"LIGO_FAST_BACKEND={asked!r} is none of 'auto', 'torch', 'triton'")
    why = _without_triton()
    if asked == "torch":
        why = "LIGO_FAST_BACKEND=torch"
    elif not why and device.type != "cuda":
        interpreted = asked == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        why = "" if interpreted else f"tensors on {device.type}"
    elif not why:
        why = _unsuitable(device)
    if asked == "triton" and why:
        raise GrowthError(f"LIGO_FAST_BACKEND=triton: {why}")
    return why


def resolve_precision(precision: str, dtype: torch.dtype) -> str:
    """The precision of products: "auto" follows the weights' dtype and torch's setting for float32.

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
    return float32.products()


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
        """`factors` are those that are learned, `others` numbers of pieces that something else covers.

        Raises:
            GrowthError: for a parameter without memory.
        """
        from .backend_triton import Plan, unique

        self.covered: frozenset[int] = frozenset()
        self.others, self._learned = frozenset(others), list(factors)
        numbers = [n for n, p in enumerate(pieces) if _shared(p) and not p.keep and n not in self.others]
        mine = [pieces[n] for n in numbers]
        self._sources = Owners(small, [name for p in mine for name in p.small])
        self._outs = Owners(large, [name for p in mine for name in p.large])
        # detached: another tensor for each name, which the plan tells apart even where two names share one
        sources, outs = (
            {name: t.detach() for name, t in zip(o.names, o.now(), strict=True)}
            for o in (self._sources, self._outs)
        )
        for name, t in (*sources.items(), *outs.items()):
            if is_nowhere(t):
                raise GrowthError(f"parameter {name} cannot be read: it is sparse, or its memory was freed")
        jobs = [_job(p, [sources[n] for n in p.small], [outs[n] for n in p.large]) for p in mine]
        self.plan: Plan | None = Plan(jobs, factors, precision, keeps=True) if jobs else None
        if self.plan is not None:
            rejected = self.plan.rejected
            self.covered = frozenset(n for i, n in enumerate(numbers) if i not in rejected)
        self._factors = unique(t for job in jobs for t in job.factors())
        self._written: list[Tensor] = []
        self._read: list[Tensor | None] = []

    def is_for(self, others: frozenset[int], factors: Sequence[Tensor]) -> bool:
        """Whether it was made for these; factors may be frozen, or no longer, since."""
        same = len(factors) == len(self._learned) and all(map(operator.is_, factors, self._learned))
        return same and self.others == others

    def look(self, pulling: bool = False) -> int:
        """Look at the parameters for the next `apply`, or at their gradients for the next `pullback`.

        0 when one is not laid out as the tables say, or is gone. With GIVEN where there is a gradient.
        """
        if self.plan is None:
            return FITS
        sources, outs = self._sources.now(), self._outs.now()
        if pulling:
            return self.plan.bind_pullback(sources, self._factors, outs)
        self._written = outs
        return self.plan.bind(sources, self._factors, outs)

    def bind(self, pulling: bool = False) -> bool:
        """The same, with gradients copied that do not lie as their parameters do; kept until `pullback`.

        False when a parameter is not laid out as the tables say, or is gone; or a gradient has no memory.
        """
        if self.look(pulling) or self.plan is None:
            return True
        if not pulling:
            return False
        sources, outs = self._sources.now(), self._outs.now()
        self._read = [None if p is None else p.grad for p in outs]
        for n, (g, p) in enumerate(zip(self._read, outs, strict=True)):  # the tables count on p's strides
            if g is None:
                continue
            if g.layout != torch.strided:
                return False
            if (g.stride(), g.dtype) != (p.stride(), p.dtype):
                like = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device=p.device)
                self._read[n] = like.copy_(g)
        return bool(self.plan.bind(sources, self._factors, outs, self._read))

    def free(self) -> None:
        """Give the workspace back until the next call."""
        if self.plan is not None:
            self.plan.pool.free()

    def apply(self) -> None:
        """Write the parameters of the covered pieces."""
        if self.plan is not None:
            self.plan.apply()
            layouts.reader.increment_version(self._written)
            self._written = []

    def pullback(self) -> None:
        """Add to the factors' `.grad`s, made where there are none, from those of the pieces' parameters."""
        if self.plan is not None:
            self.plan.pullback_into(self._learned)
            self._read = []


def _job(piece: Piece, sources: list[Tensor], outs: list[Tensor]) -> Job:
    from .backend_triton import Job

    assert isinstance(piece.rows, Map) and isinstance(piece.cols, Map)
    views = [piece.small_slot.of(t) for t in sources], [piece.large_slot.of(t) for t in outs]
    return Job(piece.depth, piece.rows, piece.cols, *views, sources, outs)


def _shared(piece: Piece) -> bool:
    """Whether all layers have the same maps."""
    return isinstance(piece.rows, Map) and isinstance(piece.cols, Map)
