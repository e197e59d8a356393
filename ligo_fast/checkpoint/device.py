"""Growing mapped tensors, in their place or in memory that is used again; here or on another device."""

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
    """On the CPU, one batch after the other."""

    def __init__(self, op: GrowthOperator) -> None:
        self._runner, self._room = Runner(op), _Room()

    def grow(self, batch: Sequence[Unit], sources: Tensors, like: Tensors, done: Done) -> None:
        """Grow a batch into `like`, or memory like it where it has none; then `done` with these tensors."""
        outs = self._room.tensors(like) if any(t.is_meta for t in like.values()) else like
        self._runner.run(batch, sources, outs)
        done(outs)

    def finish(self) -> None:
        """Nothing is left to do."""


class Staged:
    """On another device: while it grows one batch, the batch before is copied back and written."""

    def __init__(self, op: GrowthOperator, device: torch.device) -> None:
        self.device = device
        self._runner = Runner(op.to(device))
        self._slots = [_Slot(device), _Slot(device)]
        self._turn = 0

    def grow(self, batch: Sequence[Unit], sources: Tensors, like: Tensors, done: Done) -> None:
        """Begin with a batch, finish that of the call before; `done(outs)` is called when one is here."""
        slot = self._slots[self._turn]  # it was finished by the last call
        small = slot.upload(sources)
        large = {n: torch.empty(t.shape, dtype=t.dtype, device=self.device) for n, t in like.items()}
        self._runner.run(batch, small, large)
        slot.download(large, done)
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
        self._rooms = _Room(self._cuda), _Room(self._cuda)
        self._ready: torch.cuda.Event | None = None
        self._done: Callable[[], None] = lambda: None

    def upload(self, tensors: Tensors) -> dict[str, Tensor]:
        """The tensors on the device."""
        moved = {}
        for name, host in self._rooms[0].tensors(tensors).items():
            host.copy_(tensors[name])
            moved[name] = host.to(self._device, non_blocking=True, copy=True)
        return moved

    def download(self, tensors: Tensors, done: Done) -> None:
        """Start copying back."""
        hosts = self._rooms[1].tensors(tensors)
        for name, host in hosts.items():
            host.copy_(tensors[name], non_blocking=True)
        if self._cuda:
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(self._device))
        self._done = lambda: done(hosts)

    def finish(self) -> None:
        """Hand on what was copied back."""
        if self._ready is not None:
            self._ready.synchronize()
        done, self._done = self._done, lambda: None
        done()


class _Room:
    """Memory for some tensors at a time, which grows to the most that was asked for."""

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def tensors(self, like: Tensors) -> dict[str, Tensor]:
        """Tensors of these shapes and dtypes, in the place of those of the call before."""
        sizes = [-(-t.nbytes // ALIGN) * ALIGN for t in like.values()]
        if self._buffer.numel() < sum(sizes):
            self._buffer = torch.empty(0, dtype=torch.uint8)  # freed before the larger one is there
            self._buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=self._pinned)
        parts = self._buffer[: sum(sizes)].split(sizes)
        return {
            name: part[: t.nbytes].view(t.dtype).view(t.shape)
            for (name, t), part in zip(like.items(), parts, strict=True)
        }
