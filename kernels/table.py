"""Device-side tables: what one launch does to many tensors, made once and read by the kernel.

A launch works through *items* (one matrix product, one blend). An item is a row of int64 numbers; a tensor
in it is a pair (slot, offset): the address comes from `pointers[slot]`, so that tensors may move (gradients
do, every step) without the table being made again. `work` gives every program its item and its tile.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..native import layouts
from ..native.layouts import MOVED, TILTED
from . import graphs

NUMPY = {torch.int64: "int64", torch.int32: "int32"}


@dataclass(frozen=True)
class Matrix:
    """A strided (rows, columns) block of the tensor in a slot; offset and strides in elements.

    `lead` is how many bytes the slot's address lies beyond a multiple of 16.
    """

    slot: int
    offset: int
    shape: tuple[int, int]
    stride: tuple[int, int]
    dtype: torch.dtype
    lead: int = 0

    @staticmethod
    def of(view: Tensor, slot: int, base: Tensor) -> Matrix:
        """`view` (2-D) of `base`, the tensor whose address the slot holds."""
        offset = int(view.storage_offset() - base.storage_offset())
        (rows, columns), (down, across) = view.shape, view.stride()
        return Matrix(slot, offset, (rows, columns), (down, across), view.dtype)

    def t(self) -> Matrix:
        return replace(self, shape=self.shape[::-1], stride=self.stride[::-1])

    def narrow(self, dim: int, start: int, length: int) -> Matrix:
        shape = (length, self.shape[1]) if dim == 0 else (self.shape[0], length)
        return replace(self, offset=self.offset + start * self.stride[dim], shape=shape)

    def runs(self, dim: int) -> bool:
        """Whether neighbours along `dim` are neighbours in memory."""
        return self.stride[dim] == 1 or self.shape[dim] == 1

    def aligned(self, dim: int, n: int) -> bool:
        """Whether runs along `dim` lie n elements apart and start on 16 bytes."""
        across = self.stride[1 - dim] if self.shape[1 - dim] > 1 else 0
        first = self.lead + self.offset * self.dtype.itemsize
        whole = not (first % 16 or across % n or self.shape[dim] % n)
        return self.runs(dim) and whole


class Slots:
    """The addresses of a plan's tensors, here and on the device. A slot without a tensor holds 0.

    `look` reads addresses here, `upload` brings them to the device if one changed, without waiting for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.addresses = array("q")
        self._news = MOVED | TILTED  # since the upload, and since `leads`
        self._leads = b""
        self._host: Tensor | None = None  # the addresses as a tensor
        self.pointers = torch.zeros(0, dtype=torch.int64, device=device)

    def add(self, tensor: Tensor | None) -> int:
        self._host = None  # an array that is seen so cannot grow
        self.addresses.append(0 if tensor is None else tensor.data_ptr())
        self._news = MOVED | TILTED
        return len(self.addresses) - 1

    def look(self, first: int, tensors: Sequence[Tensor], layout: Hashable) -> int:
        """The slots from `first` on now hold `tensors`, if these lie as `layout` says (`layouts.Reader`)."""
        return self._note(layouts.reader.look(tensors, layout, self.addresses, first))

    def look_at_gradients(self, first: int, tensors: Sequence[Tensor], layout: Hashable) -> int:
        """The same for their `.grad`s; a tensor without one must itself lie so."""
        return self._note(layouts.reader.look_at_gradients(tensors, layout, self.addresses, first))

    def _note(self, found: int) -> int:
        """Keep what is new in what was found; where tensors lie otherwise some addresses are."""
        self._news |= found or MOVED | TILTED
        return found

    def put(self, first: int, addresses: array[int]) -> None:
        """The slots from `first` on now hold what is there."""
        if self.addresses[first : first + len(addresses)] != addresses:
            self.addresses[first : first + len(addresses)] = addresses
            self._news = MOVED | TILTED

    def lead(self, slot: int) -> int:
        """How many bytes the address lies beyond a multiple of 16."""
        return self.addresses[slot] & 15

    def leads(self) -> bytes:
        """That of every slot; the same object while it is the same."""
        if self._news & TILTED:
            found = (np.frombuffer(self.addresses, np.int64) & 15).astype(np.uint8).tobytes()
            self._leads = self._leads if found == self._leads else found
            self._news &= ~TILTED
        return self._leads

    def upload(self) -> None:
        """Not while a CUDA graph is captured: see `graphs.upload`."""
        graphs.prepare(self.device)
        if not self._news & MOVED:
            return
        if self.pointers.numel() != len(self.addresses):
            self.pointers = torch.zeros(len(self.addresses), dtype=torch.int64, device=self.device)
        if self._host is None:
            self._host = torch.frombuffer(self.addresses, dtype=torch.int64)
        self.pointers.copy_(_pinned(self._host, self.device), non_blocking=True)
        self._news &= ~MOVED


def _pinned(host: Tensor, device: torch.device) -> Tensor:
    """A tensor that a GPU can copy without making the host wait."""
    return host.pin_memory() if device.type == "cuda" else host


def upload(numbers: object, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Numbers as a tensor on the device."""
    host = torch.from_numpy(np.asarray(numbers, dtype=NUMPY[dtype]))
    return _pinned(host, device).to(device, non_blocking=True)


def tiles(
    shapes: Sequence[tuple[int, int]], rows: int | Sequence[int], columns: int, band: int = 1 << 31
) -> np.ndarray:
    """(programs, 4) int32: item, first row, first column, number of the tile within its item.

    Tiles are `rows` (one number, or one for each item) by `columns`, numbered row by row, and come in that
    order; but those of an item wider than `band` in bands of so many rows, each column by column.
    """
    heights = [rows] * len(shapes) if isinstance(rows, int) else rows
    parts = [np.zeros((0, 4), np.int64)]
    for item, ((m, n), height) in enumerate(zip(shapes, heights, strict=True)):
        first = np.meshgrid(np.arange(0, m, height), np.arange(0, n, columns), indexing="ij")
        r, c = (f.reshape(-1) for f in first)
        made = np.stack([np.full(r.size, item), r, c, np.arange(r.size)], 1)
        parts.append(made[np.lexsort((r, c, r // band))] if n > band else made)
    return np.concatenate(parts).astype(np.int32)
