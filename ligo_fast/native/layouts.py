"""Where tensors are and how they lie, hundreds in a call: what a plan checks before it trusts its tables."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import borrow, cpu

# What looking at tensors found, as bits; 0 when they lie otherwise. As in csrc/cpu/layout.h.
FITS = 1
MOVED = 2  # an address is another one than was in its place
TILTED = 4  # or even lies another number of bytes beyond a multiple of 16
GIVEN = 8  # a tensor has a gradient
MISSING = 16  # a tensor has none


class Reader:
    """In Python, with what every torch tells; `reader` is its twin in csrc/cpu/layout.h if it can be."""

    def find(self, owners: list[dict[str, Any]], keys: list[str]) -> list[Any]:
        """What each owner has under its key now, None for nothing."""
        return list(map(dict.get, owners, keys))

    def holds(self, owners: list[dict[str, Any]], keys: list[str], values: list[Any]) -> bool:
        """Whether that is the very object in its place in `values`."""
        return all(map(operator.is_, map(dict.get, owners, keys), values))

    def read(self, tensors: Sequence[Tensor | None]) -> tuple[bytes, Hashable]:
        """Addresses as int64, and a value that is equal when every device, dtype, shape and stride is.

        None is at 0. A tensor without an address (sharded, say, or freed) lies like none that has one.
        """
        layouts = tuple(
            None if t is None or is_nowhere(t) else (t.shape, t.stride(), t.dtype, t.device) for t in tensors
        )
        return array("q", map(_address, tensors)).tobytes(), layouts

    def look(
        self, tensors: Sequence[Tensor | None], layouts: Hashable, addresses: array[int], first: int
    ) -> int:
        """Whether tensors lie as `read` told of others; if so, addresses[first:] begins with their addresses.

        Gives FITS, and MOVED and TILTED against what was there; or 0.

        Raises:
            ValueError: for more tensors than there is room.
        """
        own, seen = self.read(tensors)
        return _put(array("q", own), addresses, first) if seen == layouts else 0

    def look_at_gradients(
        self, tensors: Sequence[Tensor | None], layouts: Hashable, addresses: array[int], first: int
    ) -> int:
        """The same for the `.grad` of each tensor. One without lies like its tensor; its address is 0.

        Gives GIVEN and MISSING, too; neither for a None.
        """
        gradients = [None if t is None else t.grad for t in tensors]
        shown = [t if g is None else g for t, g in zip(tensors, gradients, strict=True)]
        own, seen = self.read(shown)
        if seen != layouts:
            return 0
        numbers = array("q", own)
        for n, g in enumerate(gradients):
            if g is None:
                numbers[n] = 0
        found = _put(numbers, addresses, first)
        for t, g in zip(tensors, gradients, strict=True):
            found |= 0 if t is None else MISSING if g is None else GIVEN
        return found

    def mark(self, tensors: Sequence[Tensor], marks: array[int]) -> bool:
        """Whether these are the very tensors that `marks` tells of, and none was written since.

        It has two numbers for each, and now tells of these. Writes are as autograd counts them; a tensor that
        counts none has changed. One that is gone might be mistaken for another in its place: keep them.

        Raises:
            ValueError: for another number of tensors.
        """
        if len(marks) != 2 * len(tensors):
            raise ValueError(f"{len(marks)} numbers for {len(tensors)} tensors")
        found = array("q", [number for t in tensors for number in (id(t), _version(t))])
        same = found == marks and -1 not in found[1::2]
        marks[:] = found
        return same

    def increment_version(self, tensors: Sequence[Tensor]) -> None:
        """Count one more write to each tensor, as autograd counts them."""
        torch.autograd.graph.increment_version(tensors)


def _version(t: Tensor) -> int:
    try:
        return t._version
    except RuntimeError:  # a tensor of inference mode
        return -1


def _put(numbers: array[int], addresses: array[int], first: int) -> int:
    """Numbers in the place of others, and how they differ from those."""
    if first + len(numbers) > len(addresses):
        raise ValueError(f"{len(numbers)} tensors from {first} on, there is room for {len(addresses)}")
    before = addresses[first : first + len(numbers)]
    addresses[first : first + len(numbers)] = numbers
    if numbers == before:
        return FITS
    tilted = any((old ^ new) & 15 for old, new in zip(before, numbers, strict=True))
    return FITS | MOVED | (TILTED if tilted else 0)


def _compiled() -> Any:
    """The reader in C++, of what torch tells it directly or through DLPack; None where either is missing."""
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # not before torch 2.10
    compiled = getattr(cpu.extension, "Reader", None)
    try:
        if exchange is None or compiled is None:
            return None
        return compiled(exchange, cpu.extension.Torch(*borrow.fields()))
    except (RuntimeError, TypeError, ValueError):  # a DLPack of another major version, or no such capsule
        return None


reader: Reader = _compiled() or Reader()


def is_nowhere(t: Tensor) -> bool:
    """Whether a tensor that is not empty has no address: it is sparse or sharded, say, or was freed."""
    return bool(t.numel()) and not _address(t)


def _address(t: Tensor | None) -> int:
    try:
        return 0 if t is None else t.data_ptr()
    except RuntimeError:  # a sparse tensor, say
        return 0
