"""Processes that grow one model together: they agree before anything is written, and add up their gradients.

Messages between hosts go over gloo, so that no device has to wait for them; factors' gradients and weights go
over the device's own backend. Both have a timeout of LIGO_FAST_TIMEOUT seconds (600).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import GrowthError
from .dtensors import device_of, mesh_ranks


class Team:
    """The processes of a group, with process groups of their own; made by `team_of_ranks`, by all at once.

    Attributes:
        ranks: their numbers in the world. rank: this process's place among them. size: how many.
    """

    def __init__(self, ranks: tuple[int, ...], device: str, seconds: float) -> None:
        self.ranks, self.device, self.seconds = ranks, device, seconds
        self.size, self.rank = len(ranks), ranks.index(dist.get_rank())
        self._calls = 0
        options: dict[str, Any] = {
            "ranks": list(ranks),
            "timeout": timedelta(seconds=seconds),
            "use_local_synchronization": True,  # only these processes take part
        }
        with self._or_error("meet"):
            self._control = dist.new_group(backend="gloo", **options)
            self._data = self._control if device == "cpu" else dist.new_group(**options)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return team_of_ranks, (self.ranks, self.device)  # process groups cannot be copied

    @contextmanager
    def _or_error(self, what: str) -> Iterator[None]:
        """A process that died, hangs or is elsewhere, as a GrowthError."""
        try:
            yield
        except RuntimeError as error:
            raise GrowthError(
                f"rank {dist.get_rank()} of ranks {list(self.ranks)} could not {what}: another rank failed, "
                f"or did not answer within {self.seconds:g} s ({str(error).strip().splitlines()[0]})"
            ) from error

    def texts(self, text: str) -> list[str]:
        """What every rank says, by rank; one small message when nobody says anything."""
        own = text.encode()
        with self._or_error("agree"):
            longest = torch.tensor(len(own), device="cpu")
            dist.all_reduce(longest, dist.ReduceOp.MAX, group=self._control)
            if not int(longest):
                return [""] * self.size
            letters = list(own.ljust(int(longest), b"\0"))
            padded = torch.tensor(letters, dtype=torch.uint8, device="cpu")
            every = [torch.empty_like(padded) for _ in self.ranks]
            dist.all_gather(every, padded, group=self._control)
        return [bytes(t.tolist()).rstrip(b"\0").decode() for t in every]

    def agree(self, problem: Exception | None = None) -> None:
        """Return on every rank when none has a problem.

        Raises:
            GrowthError: on every rank, with what each rank that has a problem says.
        """
        own = "" if problem is None else str(problem) or type(problem).__name__
        if problem is not None and not isinstance(problem, GrowthError):
            own = f"{type(problem).__name__}: {own}"
        said = self.texts(own)
        if any(said):
            raise GrowthError(_by_rank(said, self.ranks)) from problem

    def compare(self, facts: Mapping[str, str]) -> None:
        """Return on every rank when all have the same facts; an empty one is not known and not compared.

        Raises:
            GrowthError: on every rank, with the first fact that differs and what it is on which rank.
        """
        short = {k: v if len(v) < 80 else _digest(v) for k, v in facts.items()}
        theirs = [json.loads(said) for said in self.texts(json.dumps(short))]
        for topic in facts:
            known = [each.get(topic, "") for each in theirs]
            if len(set(known) - {""}) > 1:
                raise GrowthError(f"the ranks disagree about the {topic}: {_by_rank(known, self.ranks)}")

    def sum_(self, flat: Tensor) -> None:
        """The sum over all ranks, in place."""
        with self._or_error("add up the gradients"):
            dist.all_reduce(flat, group=self._data)

    def broadcast_(self, t: Tensor, source: int) -> None:
        """What the rank at place `source` of the team holds, in place."""
        with self._or_error("receive weights"):
            dist.broadcast(t, self.ranks[source], group=self._data)

    def count(self) -> int:
        """The number of a call that all processes make."""
        self._calls += 1
        return self._calls

    def send(self, t: Tensor, to: int, tag: int) -> Callable[[], None]:
        """Begin to send a contiguous tensor to a place of the team; call what is returned to wait."""
        with self._or_error("send products"):
            return self._waiting(dist.isend(t, self.ranks[to], group=self._data, tag=tag))

    def receive(self, t: Tensor, source: int, tag: int) -> Callable[[], None]:
        """Begin to receive what a place of the team sends with this tag; call what is returned to wait."""
        with self._or_error("receive products"):
            return self._waiting(dist.irecv(t, self.ranks[source], group=self._data, tag=tag))

    def _waiting(self, work: dist.Work | None) -> Callable[[], None]:
        def wait() -> None:
            with self._or_error("exchange products"):
                if work is not None:
                    work.wait()

        return wait


@lru_cache(maxsize=16)
def _team(world: object, ranks: tuple[int, ...], device: str, seconds: float) -> Team:
    return Team(ranks, device, seconds)


def team_of_ranks(ranks: Iterable[int], device: str) -> Team:
    """The team of these ranks for tensors on a type of device; made once, by all of them together.

    Raises:
        GrowthError: when torch.distributed is not initialised, or a rank does not come.
    """
    _check_initialised()
    seconds = float(os.environ.get("LIGO_FAST_TIMEOUT", "600"))
    return _team(dist.group.WORLD, tuple(sorted(ranks)), device, seconds)


def _check_initialised() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise GrowthError("torch.distributed is not initialised: call init_process_group first")


def team_of_group(group: dist.ProcessGroup, device: torch.device) -> Team:
    """The team of a process group.

    Raises:
        GrowthError: when torch.distributed is not initialised, or a rank does not come.
    """
    _check_initialised()
    return team_of_ranks(dist.get_process_group_ranks(group), device.type)


def team_of_models(small: nn.Module, large: nn.Module) -> Team | None:
    """The team over which one of the models is sharded; None when neither is."""
    ranks = mesh_ranks(small, large)
    return team_of_ranks(ranks, device_of(large).type) if ranks else None


def together(team: Team | None) -> AbstractContextManager[None]:
    """What goes wrong inside on one rank is raised on all; nothing inside may wait for another rank."""
    return nullcontext() if team is None else _together(team)


@contextmanager
def _together(team: Team) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        team.agree(error)  # raises
    else:
        team.agree()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _by_rank(said: Sequence[str], ranks: Sequence[int]) -> str:
    """Once what all say, else who says what."""
    if len(set(said)) == 1:
        return said[0]
    who: dict[str, list[int]] = {}
    for rank, text in zip(ranks, said, strict=True):
        who.setdefault(text, []).append(rank)
    return "; ".join(f"rank {', '.join(map(str, r))}: {t}" for t, r in who.items() if t)
