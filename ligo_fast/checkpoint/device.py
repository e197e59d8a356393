"""Growing mapped tensors into memory that is used again, here or on another device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

import torch
from torch import Tensor

from ..compute.backend_torch import Block
from ..errors import GrowthError
from ..operator import GrowthOperator
from .units import Runner, Unit, Window

Tensors = Mapping[str, Tensor]
Done = Callable[[Tensors, Window | None], Future[None]]  # begins to write them; None: they are whole
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
    """On the CPU: while one batch, or a part of one, is grown, the one before is written."""

    def __init__(self, op: GrowthOperator) -> None:
        self._runner = Runner(op)
        self._rooms = [_Room(), _Room()]
        self._writing: list[Future[None] | None] = [None, None]
        self._turn = 0

    @torch.no_grad()
    def grow(self, batch: Sequence[Unit], sources: Tensors, like: Tensors, done: Done, limit: int) -> None:
        """Grow a batch into memory; units that mix in parts of `limit` bytes. `done` takes what is grown.

        With noise, or layers of fresh units that are mixed, a unit is a whole family, and held whole: once,
        as it is written before the next is grown.
        """
        whole = bool(self._runner.op.growth.noise or (batch[0].fresh and not batch[0].selects))
        if whole:
            self.finish()
            self._turn = 0
        if whole or batch[0].selects:
            outs = self._room().tensors(like)
            self._runner.run(batch, sources, outs)
            self._hand_on(done(outs, None))
            return
        for unit in batch:
            part: _Part | None = None
            dtype = like[unit.large[0]].dtype
            for window, block in self._runner.blocks(unit, sources, dtype):
                at = 0
                while at < block.extent:
                    if part is None or not part.goes_on(window, block, at):
                        if part is not None:
                            self._hand_on(done(part.outs(), part.window))
                        part = _Part(self._room(), window, block, at, dtype, limit)
                    n = min(block.extent - at, part.left)
                    block.write(part.take(n), slice(at, at + n))
                    at += n
            if part is not None:
                self._hand_on(done(part.outs(), part.window))

    def _room(self) -> _Room:
        """Memory whose content has been written."""
        if (writing := self._writing[self._turn]) is not None:
            writing.result()
        return self._rooms[self._turn]

    def _hand_on(self, writing: Future[None]) -> None:
        self._writing[self._turn] = writing
        self._turn = 1 - self._turn

    def finish(self) -> None:
        """Wait for what is being written."""
        for writing in self._writing:
            if writing is not None:
                writing.result()


class _Part:
    """Neighbouring rows, or columns, of the same parameters, one block's after the other's."""

    def __init__(
        self, room: _Room, window: Window, block: Block, at: int, dtype: torch.dtype, limit: int
    ) -> None:
        self._along = block.along
        shape = [s.stop - s.start for s in (block.rows, block.cols)]
        each = len(window.names) * shape[1 - block.along] * dtype.itemsize
        shape[block.along] = self.left = max(1, limit // max(1, each))
        like = torch.empty(shape, dtype=dtype, device="meta")
        self._tensors = room.tensors(dict.fromkeys(window.names, like))
        self.window = _shifted(window, block.along, at)
        self._used = 0

    def goes_on(self, window: Window, block: Block, at: int) -> bool:
        """Whether there is room, and this comes next."""
        following = _shifted(self.window, self._along, self._used)
        return (
            bool(self.left) and self._along == block.along and following == _shifted(window, self._along, at)
        )

    def take(self, n: int) -> list[Tensor]:
        """Room for the next `n`."""
        outs = [t.narrow(self._along, self._used, n) for t in self._tensors.values()]
        self._used, self.left = self._used + n, self.left - n
        return outs

    def outs(self) -> dict[str, Tensor]:
        return {name: t.narrow(self._along, 0, self._used) for name, t in self._tensors.items()}


def _shifted(window: Window, along: int, n: int) -> Window:
    if along:
        return replace(window, column=window.column + n)
    return replace(window, row=window.row + n)


class Staged:
    """On another device: while it grows one batch, the batch before is copied back and written."""

    def __init__(self, op: GrowthOperator, device: torch.device) -> None:
        self.device = device
        self._runner = Runner(op.to(device))
        self._slots = [_Slot(device), _Slot(device)]
        self._turn = 0

    def grow(self, batch: Sequence[Unit], sources: Tensors, like: Tensors, done: Done, limit: int) -> None:
        """Begin with a batch, finish that of the call before; `done` is called when one is here."""
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
        self._done = lambda: done(hosts, None).result()

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
