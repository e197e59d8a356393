"""Growing whole models with the Triton kernels: tables made once, then a few launches a call."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import layouts
from .errors import GrowthError
from .kernels.blend import BlendLaunch
from .kernels.configs import blend_config, product_config
from .kernels.expand import ProductLaunch
from .kernels.launch import Launches
from .kernels.table import Matrix, Slots
from .kernels.total import TotalLaunch
from .lowering import Lowering, Unsupported, totals
from .maps import Map
from .quadrants import Family, lower
from .waves import ADJOINT, Wave, factor_gradients


@dataclass
class Job:
    """outs[l] = U (sum_j D[l, j] sources[j]) V^T; views, with the parameter each is a view of."""

    depth: Map | None
    rows: Map
    cols: Map
    sources: Sequence[Tensor]
    outs: Sequence[Tensor]
    source_bases: Sequence[Tensor]
    out_bases: Sequence[Tensor]

    def factors(self) -> list[Tensor]:
        maps = (self.depth, self.rows, self.cols)
        return [t for m in maps if m is not None for t in m.factors().values()]


class Pool:
    """One workspace for plans that run one after the other, as large as the largest of them needed."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, size: int, device: torch.device) -> Tensor:
        if self.memory.numel() < size or self.memory.device != device:
            self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        return self.memory


class Plan:
    """Jobs as tables for a few launches; made once, used every step.

    `bind` reads where all tensors of a call lie; the call uploads the addresses if one moved, and launches.
    It allocates nothing and never waits for the device. A new plan is bound to the tensors of its jobs.

    Args:
        learned: the factors whose gradient `pullback` adds to.
        precision: of products, see `kernels.expand`.
        workspace: bytes that it may take before the jobs are worked off in several waves of launches; at
            least an eighth of the outs, so that the number of launches does not grow with the model.
        d_sources: for each job the float32 tensors, of rows as contiguous as the outs', that `pullback` adds
            dL/d sources to, or none.
        pool: to share a workspace with other plans on the same stream.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        learned: Sequence[Tensor],
        precision: str,
        workspace: int = 256 << 20,
        d_sources: Sequence[Sequence[Tensor]] = (),
        pool: Pool | None = None,
    ) -> None:
        device = jobs[0].outs[0].device
        self.slots, self.precision = Slots(device), precision
        self._on_device = partial(torch.cuda.device, device) if device.type == "cuda" else nullcontext
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        outs = unique(t for job in jobs for t in job.out_bases)
        inputs = [
            *unique(t for job in jobs for t in job.source_bases),
            *unique(t for job in jobs for t in job.factors()),
        ]
        self.lowering = Lowering(self.slots, learned)
        for t in (*inputs, *outs):
            self.lowering.add(t)
        self.grad_slot = {id(t): self.slots.add(None) for t in (*outs, *learned)}
        # the slots that outs, their gradients and those of the factors begin at
        self._starts = tuple(itertools.accumulate((len(inputs), len(outs), len(outs))))
        last = [*learned, *(t for ds in d_sources for t in ds)]
        self._layouts = [layouts.reader.read(tensors)[1] for tensors in (inputs, outs, last)]
        d_slots = [[self.slots.add(None) for _ in ds] for ds in d_sources] or [[]] * len(jobs)
        self.workspace_slot = self.slots.add(None)
        self.pool, self.workspace = pool or Pool(), torch.empty(0, dtype=torch.uint8, device=device)

        def views(tensors: Sequence[Tensor], bases: Sequence[Tensor], slots: dict[int, int]) -> list[Matrix]:
            return [Matrix.of(t, slots[id(b)], b) for t, b in zip(tensors, bases, strict=True)]

        self.families: list[Family] = []
        self.rejected: dict[int, str] = {}  # job -> why torch does it
        known = self.lowering.slot_of
        for n, job in enumerate(jobs):
            dws = [
                Matrix.of(t, slot, t)
                for t, slot in zip(d_sources[n] if d_sources else [], d_slots[n], strict=True)
            ]
            family = Family(
                job.depth, job.rows, job.cols,
                views(job.sources, job.source_bases, known), views(job.outs, job.out_bases, known),
                views(job.outs, job.out_bases, self.grad_slot), dws,
            )  # fmt: skip
            try:
                lower(family, self.lowering, self._wave(False))
            except Unsupported as why:
                self.rejected[n] = str(why)
                continue
            self.families.append(family)
        self.limit = max(workspace, sum(t.numel() * t.element_size() for t in outs) // 8)
        self.apply_launches = self._launches(adjoint=False)
        self.pullback_launches: Launches | None = None

    def _wave(self, adjoint: bool) -> Wave:
        device = self.slots.device
        tile = product_config(self.precision, "wide", 4, device).m
        return Wave(self.workspace_slot, self.dtype, blend_config(4, device), tile, adjoint)

    def _waves(self, adjoint: bool) -> list[list[Family]]:
        """Families in groups of about the same workspace, each within the limit where one family is."""
        sizes = []
        for family in self.families:
            alone = self._wave(adjoint)
            lower(family, self.lowering, alone)
            sizes.append(alone.used - alone.shared)
        groups: list[list[Family]] = [[] for _ in range(max(1, -(-sum(sizes) // self.limit)))]
        filled = [0] * len(groups)
        for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
            least = filled.index(min(filled))
            groups[least].append(self.families[n])
            filled[least] += sizes[n]
        return [g for g in groups if g]

    def _launches(self, adjoint: bool) -> Launches:
        """All launches of one call, in order; the workspace and the partial sums get their memory here."""
        launches = Launches()
        lowered = []
        for families in self._waves(adjoint):
            wave = self._wave(adjoint)
            for family in families:
                lower(family, self.lowering, wave)
            wave.stages[7].products += factor_gradients(wave)
            lowered.append(wave)
        self._allocate(lowered)
        for wave in lowered:
            for number in sorted(wave.stages):
                stage = wave.stages[number]
                launches += [
                    ProductLaunch(items, self.slots, self.precision) for items in _by_kind(stage.products)
                ]
                is_adjoint = adjoint and number >= ADJOINT
                launches += [
                    BlendLaunch(items, self.slots, is_adjoint, self.precision)
                    for items in _by_kind(stage.blends)
                ]
            if wave.sums:
                launches.append(TotalLaunch(totals(wave, self.lowering, self.grad_slot), self.slots))
        return launches

    def _allocate(self, waves: Sequence[Wave]) -> None:
        device, addresses = self.slots.device, self.slots.addresses
        used = max((w.used for w in waves), default=0)
        if used > self.workspace.numel():
            self.workspace = self.pool.take(used, device)
            addresses[self.workspace_slot] = self.workspace.data_ptr()
        for slot in {slot for w in waves for slot in w.sums}:
            factor, group = self.lowering.totals[slot]
            parts = max(w.sums.get(slot, 0) for w in waves)
            sums = torch.empty(parts * factor.numel() * group, dtype=torch.float32, device=device)
            self.lowering.fixed.append(sums)
            addresses[slot] = sums.data_ptr()
        self.slots.upload()

    @property
    def workspace_bytes(self) -> int:
        """Memory that the plan holds beside its tables."""
        return sum(t.numel() * t.element_size() for t in (self.workspace, *self.lowering.fixed))

    def bind(
        self,
        sources: Sequence[Tensor],
        factors: Sequence[Tensor],
        outs: Sequence[Tensor],
        grads: Sequence[Tensor | None] | None = None,
    ) -> bool:
        """Look at what the next call works on, in the order of the jobs', each tensor once; none is kept.

        `grads` are dL/d outs, None for zero: with them the call is `pullback`, which leaves the outs alone,
        without them `apply`. False when a tensor does not lie as the tables say: then do not call.
        """
        if not self.slots.look(0, [*sources, *factors], self._layouts[0]):
            return False
        if grads is None:
            return self.slots.look(self._starts[0], outs, self._layouts[1])
        shown = [p if g is None else g for g, p in zip(grads, outs, strict=True)]
        fits = self.slots.look(self._starts[1], shown, self._layouts[1])
        for n, g in enumerate(grads):
            if g is None:
                self.slots.clear(self._starts[1] + n)
        return fits

    def bind_pullback(
        self, sources: Sequence[Tensor], factors: Sequence[Tensor], outs: Sequence[Tensor]
    ) -> bool:
        """`bind` with the outs' `.grad`s, which Python never sees: that saves an object for each."""
        if not self.slots.look(0, [*sources, *factors], self._layouts[0]):
            return False
        return self.slots.look_at_gradients(self._starts[1], outs, self._layouts[1])

    def apply(self) -> None:
        """Write every job's outs."""
        self._run(self.apply_launches)

    def pullback(self, factor_grads: Sequence[Tensor], d_sources: Sequence[Tensor] = ()) -> None:
        """Add to factor_grads, one for each learned factor, from the gradients that `bind` was given.

        `d_sources` are those of all jobs, one after the other.

        Raises:
            GrowthError: when these do not lie as the factors do, or as the plan's `d_sources`.
        """
        if self.pullback_launches is None:
            self.pullback_launches = self._launches(adjoint=True)
        if not self.slots.look(self._starts[2], [*factor_grads, *d_sources], self._layouts[2]):
            raise GrowthError("the gradient of a factor has another dtype, device or stride than the factor")
        self._run(self.pullback_launches)

    def _run(self, launches: Launches) -> None:
        with self._on_device():
            self.slots.upload()
            launches(self.slots)


def unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor once, in the order of the first time."""
    return list({id(t): t for t in tensors}.values())


def _by_kind(items: Sequence[Any]) -> list[list[Any]]:
    """Items that may share a launch."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(item.kind, []).append(item)
    return list(groups.values())
