"""Where tensors lie and how, hundreds in one call: what a plan compares before it trusts its tables."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from . import cpu


def _compiled() -> Any:
    """The reader in C++, of what torch tells through DLPack; None where either is missing."""
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # not before torch 2.10
    reader = getattr(cpu.extension, "Layouts", None)
    try:
        return None if exchange is None or reader is None else reader(exchange)
    except (RuntimeError, TypeError, ValueError):  # a DLPack of another major version, or no such capsule
        return None


_reader = _compiled()


def read(tensors: Sequence[Tensor | None], instead: Sequence[Tensor] = ()) -> tuple[array[int], Hashable]:
    """Addresses, and a value that is equal when every device, dtype, shape and stride is.

    For None the address is 0 and the rest that of the tensor in its place in `instead`, which has as many or
    none. A tensor without an address (sharded, say, or freed) is like none that has one. Best given lists.
    """
    if _reader is not None:
        addresses, layouts = _reader(tensors, instead)
        return array("q", addresses), layouts
    shown = [i if t is None else t for t, i in zip(tensors, instead or tensors, strict=True)]
    layouts = tuple(
        None if t is None or is_nowhere(t) else (t.shape, t.stride(), t.dtype, t.device) for t in shown
    )
    return array("q", map(_address, tensors)), layouts


def is_nowhere(t: Tensor) -> bool:
    """Whether a tensor that is not empty has no address: it is sparse or sharded, say, or was freed."""
    return bool(t.numel()) and not _address(t)


def _address(t: Tensor | None) -> int:
    try:
        return 0 if t is None else t.data_ptr()
    except RuntimeError:  # a sparse tensor, say
        return 0
