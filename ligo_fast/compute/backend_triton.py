"""Growing whole models with the Triton kernels: tables made once, then a few launches a call."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import GrowthError
from ..kernels import graphs
from ..kernels.blend import BlendLaunch
from ..kernels.configs import blend_config, product_config
from ..kernels.expand import ProductLaunch
from ..kernels.launch import Launch, Launches
from ..kernels.table import Matrix, Slots
from ..kernels.total import TotalLaunch
from ..models.modes import no_inference
from ..native import layouts
from ..native.layouts import MISSING, MOVED
from ..unchanged import steps
from .job import Job as Job
from .job import Pool as Pool
from .lowering import Lowering, Unsupported, totals
from .quadrants import Family, lower
from .waves import ADJOINT, Stage, Wave, factor_gradients

PATTERNS = 4  # of alignment that a plan keeps launches for
ODD_GRADIENT = "the gradient of a factor has another dtype, device or stride than the factor"

NOWHERE = array("q", [0])


class Plan:
    """Jobs as tables for a few launches; made once, used every step.

    `bind` reads where all tensors of a call lie; the call uploads the addresses if one moved, and launches.
    It allocates nothing and never waits for the device. A new plan is bound to the tensors of its jobs.

    A call that is captured in a CUDA graph has an address list and a workspace that belong to the graph, so
    no other call changes what a replay does. The tables must be there: the first call is not captured.

    Args:
        learned: the factors whose gradient `pullback` adds to.
        precision: of products, see `kernels.expand`.
        workspace: bytes that it may take before the jobs are worked off in several waves of launches; at
            least an eighth of the outs. A wave takes what its largest job does, and partial sums come on top.
        d_sources: for each job the float32 tensors, of rows as contiguous as the outs', that `pullback` adds
            dL/d sources to, or none.
        pool: to share a workspace with other plans on the same stream.
        keeps: whether a pull-back may find in the workspace what a call before made of the same sources and
            factors. Then nobody else has the workspace, and the plan keeps the tensors of the last call.

    Raises:
        GrowthError: while a CUDA graph is captured.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        learned: Sequence[Tensor],
        precision: str,
        workspace: int = 1 << 30,
        d_sources: Sequence[Sequence[Tensor]] = (),
        pool: Pool | None = None,
        keeps: bool = False,
    ) -> None:
        device = jobs[0].outs[0].device
        graphs.check_not_capturing(device)
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
        self.pool = pool or Pool(device)
        # the slots of the workspace and, after it, of the partial sums in it
        self.workspace_slot = self.slots.add(None)
        self.lowering.sums = {id(t): self.slots.add(None) for t in learned}

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
                self._wave([family], adjoint=False)
            except Unsupported as why:
                self.rejected[n] = str(why)
                continue
            self.families.append(family)
        self.limit = max(workspace, sum(t.numel() * t.element_size() for t in outs) // 8)
        self.keeps, self._inputs = keeps, inputs if keeps else []
        self._marks = array("q", bytes(16 * len(inputs)))
        self._left: tuple[object, int, int] | None = None  # in the workspace; see `_now`
        self._made: dict[tuple[bool, bytes], Launches] = {}
        self._last: dict[bool, tuple[bytes, Launches]] = {}

    def _wave(self, families: Sequence[Family], adjoint: bool, before: Wave | None = None) -> Wave:
        device = self.slots.device
        tile = product_config(self.precision, "wide", 4, device).m
        wave = Wave(self.workspace_slot, self.dtype, blend_config(4, device), tile, adjoint)
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

    @property
    def apply_launches(self) -> Launches:
        """Those of `apply`, for tensors aligned as they are now."""
        return self._launches(adjoint=False)

    @property
    def pullback_launches(self) -> Launches:
        """Those of `pullback`."""
        return self._launches(adjoint=True)

    def _launches(self, adjoint: bool) -> Launches:
        """Made once for every pattern of alignment, of which the last few are kept: items whose tensors start
        off 16 bytes have other kernels.
        """
        leads = self.slots.leads()
        last = self._last.get(adjoint)
        if last is not None and last[0] is leads:
            return last[1]
        inputs, outs, _ = self._starts
        read = leads[:inputs] + leads[outs : self.workspace_slot] if adjoint else leads[:outs]
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
            before = self._launches(adjoint=False)
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
            starts[slot - self.workspace_slot] = size
            parts = max(w.sums.get(slot, 0) for w in waves)
            size += -(-4 * parts * factor.numel() * group // 256) * 256
        return size, starts

    @property
    def workspace(self) -> Tensor:
        """Where the arrays between launches and the partial sums are; plans may share it."""
        return self.pool.memory

    @property
    def table_bytes(self) -> int:
        """Memory that the plan holds beside its workspace."""
        tables = (t for launches in self._made.values() for each in launches for t in each.tables)
        return sum(t.nbytes for t in (*self.lowering.fixed, *tables))

    def bind(
        self,
        sources: Sequence[Tensor],
        factors: Sequence[Tensor],
        outs: Sequence[Tensor],
        grads: Sequence[Tensor | None] | None = None,
    ) -> int:
        """Look at what the next call works on, in the order of the jobs', each tensor once; none is kept.

        `grads` are dL/d outs, None for zero: with them the call is `pullback`, which leaves the outs alone,
        without them `apply`. 0 when a tensor does not lie as the tables say: then do not call.
        """
        if not self._look_at_inputs([*sources, *factors]):
            return 0
        if grads is None:
            return self.slots.look(self._starts[0], outs, self._layouts[1])
        shown = [p if g is None else g for g, p in zip(grads, outs, strict=True)]
        fits = self.slots.look(self._starts[1], shown, self._layouts[1])
        for n, g in enumerate(grads):
            if g is None:
                self.slots.put(self._starts[1] + n, NOWHERE)
        return fits

    def _look_at_inputs(self, inputs: list[Tensor]) -> int:
        found = self.slots.look(0, inputs, self._layouts[0])
        if found and self.keeps:
            self._inputs = inputs
            if not layouts.reader.mark(inputs, self._marks) or found & MOVED:
                self._left = None
        return found

    def bind_pullback(
        self, sources: Sequence[Tensor], factors: Sequence[Tensor], outs: Sequence[Tensor]
    ) -> int:
        """`bind` with the outs' `.grad`s, which Python never sees: that saves an object for each.

        Tells with `layouts.GIVEN` whether there is any.
        """
        if not self._look_at_inputs([*sources, *factors]):
            return 0
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
        if not self.slots.look(self._starts[2], [*factor_grads, *d_sources], self._layouts[2]):
            raise GrowthError(ODD_GRADIENT)
        self._run(self.pullback_launches)

    def pullback_into(self, learned: Sequence[Tensor]) -> None:
        """`pullback` with the `.grad`s of the learned factors, which are made where there are none.

        Raises:
            GrowthError: when one does not lie as its factor does.
        """
        first, layout = self._starts[2], self._layouts[2]
        found = self.slots.look_at_gradients(first, learned, layout)
        if not found or found & MISSING:
            with no_inference():  # they live on after the call
                for factor in learned:
                    if factor.grad is None:
                        factor.grad = torch.zeros_like(factor)
            if not self.slots.look_at_gradients(first, learned, layout):
                raise GrowthError(ODD_GRADIENT)
        self._run(self.pullback_launches)

    def _run(self, launches: Launches) -> None:
        with self._on_device():
            if graphs.is_capturing(self.slots.device):
                self._capture(launches)
                return
            self.pool.reserve(launches.memory)
            self._place(launches, self.workspace)
            self.slots.upload()
            left, now = self._left, self._now(launches)
            found = left is not None and left == now
            self._left = None  # until all went well
            (launches.short if found and launches.short else launches)(self.slots.pointers)
            self._left = now

    def _now(self, launches: Launches) -> tuple[object, int, int] | None:
        """What a call leaves in the workspace, for as long as this is the same; None for nothing."""
        if not self.keeps or launches.leaves is None:
            return None
        return launches.leaves, self.pool.taken, steps()

    def _capture(self, launches: Launches) -> None:
        """The address list and the workspace are the graph's memory: free for what it does after them."""
        workspace = torch.empty(launches.memory, dtype=torch.uint8, device=self.slots.device)
        self._place(launches, workspace)
        pointers = graphs.upload(self.slots.addresses, self.slots.device)
        for launch in launches:
            launch(pointers)
        graphs.keep(launches, self.lowering.fixed)

    def _place(self, launches: Launches, workspace: Tensor) -> None:
        places = launches.places(workspace.data_ptr())
        self.slots.put(self.workspace_slot, places)


def unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor once, in the order of the first time."""
    return list({id(t): t for t in tensors}.values())


def _by_kind(items: Sequence[Any]) -> list[list[Any]]:
    """Items that may share a launch."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(item.kind, []).append(item)
    return list(groups.values())
