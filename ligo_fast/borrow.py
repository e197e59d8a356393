"""Where torch's own C++ functions on tensors are in this process: what csrc/cpu/borrow.h calls.

They are no interface of torch's: only releases that this was tried with are asked, for all others the reader
goes through DLPack, and through Python, which takes longer.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RELEASES = ("2.11", "2.13")  # tried with, by tests/test_layouts.py
FUNCTIONS = {  # library -> names as its compiler wrote them
    "torch_cpu": (
        "_ZN2at17toDLPackNonOwningERKNS_6TensorEP8DLTensor",
        "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
    ),
    "c10": ("_ZNK3c1010TensorImpl4gradEv",),
}


def fields() -> tuple[Any, ...]:
    """What a `Torch` of csrc/cpu/borrow.h is made of; nothing where this torch is not known well enough."""
    if ".".join(torch.__version__.split(".")[:2]) not in RELEASES:
        return ()
    try:
        describe, bump_version, gradient = (
            _address(library, name) for library, names in FUNCTIONS.items() for name in names
        )
    except (OSError, AttributeError, TypeError):  # another platform, whose compiler names things otherwise
        return ()
    if (offset := _offset()) is None:
        return ()
    return type_of_all(), offset, _nothing(gradient), describe, gradient, bump_version


def type_of_all() -> type:
    """The type in C that every Python tensor's is derived from."""
    return torch._C.TensorBase


def _address(library: str, function: str) -> int:
    """Raises OSError or AttributeError where that is not there."""
    path = next((Path(torch.__file__).parent / "lib").glob(f"lib{library}.*"), None)
    loaded = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    return ctypes.cast(getattr(loaded, function), ctypes.c_void_p).value or 0


def _offset() -> int | None:
    """How far into a Python tensor the address of its c10::TensorImpl is; None if it is not where it was."""
    offset = object.__basicsize__
    tensors = torch.zeros(1), nn.Parameter(torch.zeros(1))
    found = [ctypes.c_void_p.from_address(id(t) + offset).value == t._cdata for t in tensors]
    return offset if all(found) and Tensor.__basicsize__ > offset else None


def _nothing(gradient: int) -> int:
    """The impl of an undefined tensor: the gradient of a tensor that has none."""
    ask = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(gradient)
    return ask(torch.zeros(1)._cdata)[0] or 0
