"""Families of weights as the launches of a call: which are launched together, in which order and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import graphs
from ..kernels.blend import BlendLaunch
from ..kernels.configs import blend_config, product_config
from ..kernels.expand import ProductLaunch
from ..kernels.launch import Launch, Launches
from ..kernels.table import Slots
from ..kernels.total import TotalLaunch
from .family import Family
from .lowering import Lowering, Unsupported, totals
from .quadrants import lower
from .waves import ADJOINT, Stage, Wave, factor_gradients

PATTERNS = 4  # of alignment that a plan keeps launches for


class Launching:
    """The launches of both calls, made once for every pattern of alignment, of which the last few are kept.

    Items whose tensors start off 16 bytes have other kernels.

    Args:
        precision: of products, see `kernels.expand`.
        starts: the slots after the inputs, and after the outs.
        workspace: its slot, after which come those of the partial sums.
        grad_slot: those of the gradients of outs and factors, by the identity of these.
        limit: bytes of workspace for one wave, or what its largest family takes.
        keeps: whether a pull-back may find what a call before left in the workspace.
    """

    def __init__(
        self,
        slots: Slots,
        lowering: Lowering,
        precision: str,
        starts: tuple[int, int],
        workspace: int,
        grad_slot: dict[int, int],
        limit: int,
        keeps: bool,
    ) -> None:
        self.slots, self.lowering, self.precision = slots, lowering, precision
        self.starts, self.workspace, self.grad_slot = starts, workspace, grad_slot
        self.limit, self.keeps = limit, keeps
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.families: list[Family] = []
        self._made: dict[tuple[bool, bytes], Launches] = {}
        self._last: dict[bool, tuple[bytes, Launches]] = {}

    def add(self, family: Family) -> str:
        """Why the kernels do not cover a family; empty where they do, and it is one of these."""
        try:
            self._wave([family], adjoint=False)
        except Unsupported as why:
            return str(why)
        self.families.append(family)
        return ""

    def tables(self) -> list[Tensor]:
        """Those of all launches."""
        made = (t for launches in self._made.values() for each in launches for t in each.tables)
        return [*self.lowering.fixed, *made]

    def _wave(self, families: Sequence[Family], adjoint: bool, before: Wave | None = None) -> Wave:
        device = self.slots.device
        tile = product_config(self.precision, "wide", 4, device).m
        wave = Wave(self.workspace, self.dtype, blend_config(4, device), tile, adjoint)
        if before is not None:
            wave.follow(before)
        for number, family in enumerate(families):
            lower(family.now(self.slots), self.lowering, wave, number)
        return wave

    def _waves(self, adjoint: bool) -> list[Wave]:
        """All families in one; or several of about the same workspace, within the limit where a family is."""
        whole = self._wave(self.families, adjoint)
        if whole.used <= self.limit:
            return [whole]
        alone = (self._wave([family], adjoint) for family in self.families)
        sizes = [wave.used - wave.shared for wave in alone]
        groups: list[list[Family]] = [[] for _ in range(max(1, -(-sum(sizes) // self.limit)))]
        filled = [0] * len(groups)
        for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
            least = filled.index(min(filled))
            groups[least].append(self.families[n])
            filled[least] += sizes[n]
        return [self._wave(g, adjoint) for g in groups if g]

    def of(self, adjoint: bool) -> Launches:
        """Those of `apply`, or of `pullback`, for tensors aligned as they are now."""
        leads = self.slots.leads()
        last = self._last.get(adjoint)
        if last is not None and last[0] is leads:
            return last[1]
        inputs, outs = self.starts
        read = leads[:inputs] + leads[outs : self.workspace] if adjoint else leads[:outs]
        if (adjoint, read) not in self._made:
            made = self._make(adjoint)
            while len(self._made) >= PATTERNS:
                del self._made[next(iter(self._made))]
            self._made[adjoint, read] = made
        self._last[adjoint] = leads, self._made[adjoint, read]
        return self._made[adjoint, read]

    def _make(self, adjoint: bool) -> Launches:
        """All launches of one call, in order; the workspace becomes large enough for them here.

        Raises:
            GrowthError: while a CUDA graph is captured.
        """
        graphs.check_not_capturing(self.slots.device)
        if adjoint and self.keeps:
            before = self.of(adjoint=False)
            wave = self._wave(self.families, adjoint, self._wave(self.families, adjoint=False))
            if wave.used <= self.limit:
                again = self._staged(wave.again, adjoint)
                return self._all([wave], again, before)
        launches = self._all(self._waves(adjoint))
        launches.leaves = None if adjoint else launches
        return launches

    def _all(
        self, waves: Sequence[Wave], again: Sequence[Launch] = (), before: Launches | None = None
    ) -> Launches:
        """The launches of some waves; after them, where there is a call before that they stand on, its."""
        for wave in waves:
            wave.stages[7].products += factor_gradients(wave)
        memory, starts = self._memory(waves)
        whole, short = (Launches(memory, starts) for _ in range(2))
        for wave in waves:
            short += self._staged(wave.stages, wave.is_adjoint)
            if wave.sums:
                short.append(TotalLaunch(totals(wave, self.lowering, self.grad_slot), self.slots))
        whole += [*again, *short]
        if before is not None:
            whole.leaves, whole.short = before, short
        return whole

    def _staged(self, stages: dict[int, Stage], adjoint: bool) -> list[Launch]:
        """The launches of some stages, one after the other."""
        launches: list[Launch] = []
        for number, stage in sorted(stages.items()):
            launches += [
                ProductLaunch(items, self.slots, self.precision) for items in _by_kind(stage.products)
            ]
            back = adjoint and number >= ADJOINT
            launches += [
                BlendLaunch(items, self.slots, back, self.precision) for items in _by_kind(stage.blends)
            ]
        return launches

    def _memory(self, waves: Sequence[Wave]) -> tuple[int, list[int]]:
        """Bytes that waves need one after the other, and where in them those slots begin that are used."""
        size, starts = max((w.used for w in waves), default=0), [0]
        if any(w.sums for w in waves):
            starts += [0] * len(self.lowering.sums)
        for slot in {slot: None for w in waves for slot in w.sums}:
            factor, group = self.lowering.totals[slot]
            starts[slot - self.workspace] = size
            parts = max(w.sums.get(slot, 0) for w in waves)
            size += -(-4 * parts * factor.numel() * group // 256) * 256
        return size, starts


def _by_kind(items: Sequence[Any]) -> list[list[Any]]:
    """Items that may share a launch."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(item.kind, []).append(item)
    return list(groups.values())
