"""Growing whole models with the Triton kernels: tables made once, then a few launches a call."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from ..errors import GrowthError
from ..kernels import graphs
from ..kernels.launch import Launches
from ..kernels.table import Matrix, Slots
from ..models.modes import no_inference
from ..native import layouts
from ..native.layouts import MISSING, MOVED
from ..unchanged import steps
from .family import Family
from .gradient_maps import make_gradients
from .job import Job as Job
from .job import Pool as Pool
from .launching import Launching
from .lowering import Lowering

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
        self.slots = Slots(device)
        self._on_device = partial(torch.cuda.device, device) if device.type == "cuda" else nullcontext
        outs = unique(t for job in jobs for t in job.out_bases)
        inputs = [
            *unique(t for job in jobs for t in job.source_bases),
            *unique(t for job in jobs for t in job.factors()),
        ]
        self.lowering = Lowering(self.slots, learned)
        for t in (*inputs, *outs):
            self.lowering.add(t)
        grad_slot = {id(t): self.slots.add(None) for t in (*outs, *learned)}
        # the slots that outs, their gradients and those of the factors begin at
        self._starts = len(inputs), len(inputs) + len(outs), len(inputs) + 2 * len(outs)
        last = [*learned, *(t for ds in d_sources for t in ds)]
        self._layouts = [layouts.reader.read(tensors)[1] for tensors in (inputs, outs, last)]
        d_slots = [[self.slots.add(None) for _ in ds] for ds in d_sources] or [[]] * len(jobs)
        self.pool = pool or Pool(device)
        # the slots of the workspace and, after it, of the partial sums in it
        self.workspace_slot = self.slots.add(None)
        self.lowering.sums = {id(t): self.slots.add(None) for t in learned}

        def views(tensors: Sequence[Tensor], bases: Sequence[Tensor], slots: dict[int, int]) -> list[Matrix]:
            return [Matrix.of(t, slots[id(b)], b) for t, b in zip(tensors, bases, strict=True)]

        limit = max(workspace, sum(t.numel() * t.element_size() for t in outs) // 8)
        self.launching = Launching(
            self.slots, self.lowering, precision, self._starts[:2],
            self.workspace_slot, grad_slot, limit, keeps,
        )  # fmt: skip
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
                views(job.outs, job.out_bases, grad_slot), dws,
            )  # fmt: skip
            if why := self.launching.add(family):
                self.rejected[n] = why
        self.keeps, self._inputs = keeps, inputs if keeps else []
        self._marks = array("q", bytes(16 * len(inputs)))
        self._left: tuple[object, int, int] | None = None  # in the workspace; see `_now`

    @property
    def apply_launches(self) -> Launches:
        """Those of `apply`, for tensors aligned as they are now."""
        return self.launching.of(adjoint=False)

    @property
    def pullback_launches(self) -> Launches:
        """Those of `pullback`."""
        return self.launching.of(adjoint=True)

    @property
    def workspace(self) -> Tensor:
        """Where the arrays between launches and the partial sums are; plans may share it."""
        return self.pool.memory

    @property
    def table_bytes(self) -> int:
        """Memory that the plan holds beside its workspace."""
        return sum(t.nbytes for t in self.launching.tables())

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
        if self.keeps:
            self._inputs = inputs
            if not found or not layouts.reader.mark(inputs, self._marks) or found & MOVED:
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
            with no_inference():
                make_gradients(learned)
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
        """The address list and the workspace are the graph's memory: free for what it does after them.

        A replay may write what later calls read, and nobody counts that: none finds anything from now on.
        """
        self.keeps, self._left = False, None
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
