"""Growing mapped tensors where they lie, or on another device through pinned buffers that take turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import GrowthError
from ..operator import GrowthOperator
from .units import Runner, Unit

Tensors = Mapping[str, Tensor]
Done = Callable[[Tensors], None]
ALIGN = 256  # bytes, of tensors in a buffer


def read_device(name: str) -> torch.device:
    """A device to compute on.

    Raises:
        GrowthError: for one that is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise GrowthError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    if device.type not in ("cpu", "cuda"):
        raise GrowthError(f"device {name!r} is neither cpu nor cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise GrowthError(f"device {name!r}: torch finds {torch.cuda.device_count()} GPUs")
    return device


class Direct:
    """On the CPU: from the mapped source to the mapped result."""

    def __init__(self, op: GrowthOperator) -> None:
        self._runner = Runner(op)

    def grow(self, batch: Sequence[Unit], sources: Tensors, outs: Tensors, done: Done) -> None:
        """Write `outs`; then `done(outs)`."""
        self._runner.run(batch, sources, outs)
        done(outs)

    def finish(self) -> None:
        """Nothing is left to do."""


class Staged:
    """On another device: while it grows one batch, the batch before is copied into the mapped result."""

    def __init__(self, op: GrowthOperator, device: torch.device) -> None:
        self.device = device
        self._runner = Runner(op.to(device))
        self._slots = [_Slot(device), _Slot(device)]
        self._turn = 0

    def grow(self, batch: Sequence[Unit], sources: Tensors, outs: Tensors, done: Done) -> None:
        """Begin with `outs`, finish those of the call before; `done` is called when they are written."""
        slot = self._slots[self._turn]  # it was finished by the last call
        small = slot.upload(sources)
        large = {n: torch.empty(t.shape, dtype=t.dtype, device=self.device) for n, t in outs.items()}
        self._runner.run(batch, small, large)
        slot.download(large, outs, done)
        self._turn = 1 - self._turn
        self._slots[self._turn].finish()

    def finish(self) -> None:
        """Wait for what is under way."""
        for slot in self._slots:
            slot.finish()


class _Slot:
    """Two buffers that the device reads and writes by itself, and what is to be done when it has."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._buffers: dict[str, Tensor] = {}
        self._ready: torch.cuda.Event | None = None
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._done: Callable[[], None] = lambda: None

    def upload(self, tensors: Tensors) -> dict[str, Tensor]:
        """The tensors on the device."""
        moved = {}
        for (name, t), host in zip(tensors.items(), self._hosts("in", tensors), strict=True):
            host.copy_(t)
            moved[name] = host.to(self._device, non_blocking=True, copy=True)
        return moved

    def download(self, tensors: Tensors, outs: Tensors, done: Done) -> None:
        """Start copying back."""
        for (name, t), host in zip(tensors.items(), self._hosts("out", tensors), strict=True):
            host.copy_(t, non_blocking=True)
            self._copies.append((outs[name], host))
        if self._cuda:
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(self._device))
        self._done = lambda: done(outs)

    def finish(self) -> None:
        """Write what was copied back."""
        if self._ready is not None:
            self._ready.synchronize()
        copies, self._copies, done, self._done = self._copies, [], self._done, lambda: None
        for out, host in copies:
            out.copy_(host)
        done()

    def _hosts(self, which: str, like: Tensors) -> list[Tensor]:
        """Views of a buffer, one for each tensor."""
        sizes = [-(-t.nbytes // ALIGN) * ALIGN for t in like.values()]
        if (buffer := self._buffers.get(which)) is None or buffer.numel() < sum(sizes):
            self._buffers.pop(which, None)  # freed before the larger one is there
            buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=self._cuda)
            self._buffers[which] = buffer
        hosts, at = [], 0
        for t, size in zip(like.values(), sizes, strict=True):
            hosts.append(buffer[at : at + t.nbytes].view(t.dtype).view(t.shape))
            at += size
        return hosts
