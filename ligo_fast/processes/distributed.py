"""What processes that grow one model send each other: factors' gradients, the small model, plans."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import GrowthError
from ..fetch import Fetch
from ..training.factors import learned_factors
from .dtensors import is_sharded
from .team import Team

if TYPE_CHECKING:
    from ..operator import GrowthOperator


class Bucket:
    """The gradients of some parameters as views of one buffer `flat`, so that one all-reduce adds them up."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters, self._held = list(parameters), [p.grad for p in parameters]
        self.flat = self._parameters[0].new_zeros(sum(p.numel() for p in parameters), requires_grad=False)
        _view_as_gradients(self._parameters, self.flat)

    def give(self) -> None:
        """What is in the buffer becomes the gradient, in addition to what was there before."""
        for p, held in zip(self._parameters, self._held, strict=True):
            if held is not None and p.grad is not None:
                p.grad = held.add_(p.grad)


def mean_(parameters: Sequence[Tensor], team: Team) -> None:
    """Make the gradients their mean over the ranks, in one all-reduce; a missing one counts as zero."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    team.sum_(flat.div_(team.size))
    _view_as_gradients(parameters, flat)


def _view_as_gradients(parameters: Sequence[Tensor], flat: Tensor) -> None:
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view(p.shape)


class Fetched(Fetch):
    """The small model on every rank, from the rank that has it, or from its parts.

    Families are asked for by all ranks, in the same order.
    """

    def __init__(self, team: Team, holder: int) -> None:
        super().__init__()
        self.team, self.holder = team, holder

    def whole(self, name: str, t: Any) -> Tensor:
        if is_sharded(t):
            full: Tensor = t.full_tensor()
            return full
        here = self.team.rank == self.holder
        sent: Tensor = (
            t.contiguous() if here else torch.empty(t.shape, dtype=t.dtype, device=self.team.device)
        )
        self.team.broadcast_(sent, self.holder)
        return sent


@dataclass(frozen=True)
class Traffic:
    """Bytes that each rank gives to the all-reduce of one step."""

    factors: int
    model: int

    @property
    def ratio(self) -> float:
        """What is left of DistributedDataParallel's traffic."""
        return self.factors / self.model


def traffic(op: GrowthOperator) -> Traffic:
    """The volume of the factors' gradients beside that of the large model's, which DDP would reduce."""
    learned = learned_factors(op).values()
    factors, model = (sum(p.nbytes for p in ps) for ps in (learned, op.large.parameters()))
    return Traffic(factors, model)


def agree_on_plan(op: GrowthOperator, team: Team) -> int | None:
    """The place in the team of a rank that must send the small model to the others; None when all have it.

    Raises:
        GrowthError: on every rank, when the ranks have not made the same operator.
    """
    team.compare(plan_facts(op))
    small = list(op.small.parameters())
    have = team.texts("" if op.files is None and any(p.is_meta for p in small) else "whole")
    if not any(have):
        raise GrowthError("the source is on the meta device on every rank: none has weights to grow")
    return None if all(have) and not any(map(is_sharded, small)) else have.index("whole")


def plan_facts(op: GrowthOperator) -> dict[str, str]:
    """What ranks that grow one model together must have in common."""
    maps = [m for piece in op.pieces for m in piece.maps()]
    weights = list(op.small.parameters())
    known = not any(t.is_meta or is_sharded(t) for t in weights)
    sizes = [{n: list(p.shape) for n, p in m.named_parameters()} for m in (op.small, op.large)]
    return {
        "method": op.growth.method,
        "seed": str(op.seed),
        "noise": str(op.growth.noise),
        "source": "in memory" if op.files is None else "in files",
        "dtype": f"{op.dtype} for {op._large_dtype}",
        "source's sizes": json.dumps(sizes[0]),
        "target's sizes": json.dumps(sizes[1]),
        "maps": ", ".join(f"{m!r} {fingerprint(vars(m).values())}" for m in maps),
        "factors": fingerprint(op.parameters()),
        "source's weights": fingerprint(weights) if known else "",
    }


def fingerprint(values: Iterable[Any]) -> str:
    """A digest of tensors: their shapes and the sums of their bits, which no order of summation changes."""
    digest = hashlib.sha256()
    for t in values:
        if isinstance(t, Tensor):
            bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
            total = int(t.detach().contiguous().view(bits).sum(dtype=torch.int64))
            digest.update(f"{tuple(t.shape)} {t.dtype} {total}".encode())
    return digest.hexdigest()[:16]
