"""Where torch's own C++ functions on tensors are in this process: what csrc/cpu/borrow.h calls.

They are no interface of torch's: only releases that this was tried with are asked, on Linux. For all others
the reader goes through DLPack, and through Python, which takes longer.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

RELEASES = ("2.11", "2.12", "2.13", "2.14", "2.15")  # tried with, by tests/test_layouts.py
GRADIENT = ("c10", "_ZNK3c1010TensorImpl4gradEv")  # as its compiler wrote c10::TensorImpl::grad() const
BUMP_VERSION = ("torch_cpu", "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE")
VERSION = ("torch_cpu", "_ZNK2at10TensorBase8_versionEv")
DESCRIBE = (  # before torch 2.14, and since
    ("torch_cpu", "_ZN2at17toDLPackNonOwningERKNS_6TensorEP8DLTensor"),
    ("torch_cpu", "_ZN2at17toDLPackNonOwningERKNS_6TensorEP8DLTensorb"),
)


def fields() -> tuple[Any, ...]:
    """What a `Torch` of csrc/cpu/borrow.h is made of; nothing where this torch is not known well enough."""
    if sys.platform != "linux" or ".".join(torch.__version__.split(".")[:2]) not in RELEASES:
        return ()
    gradient, *writes = (_address(*f) for f in (GRADIENT, BUMP_VERSION, VERSION))
    describe, offset = [_address(*f) for f in DESCRIBE], _offset()
    if not (gradient and all(writes) and any(describe) and offset):
        return ()
    return torch._C.TensorBase, offset, _nothing(gradient), gradient, *writes, *describe


def _address(library: str, function: str) -> int:
    """0 for what is not there."""
    path = next((Path(torch.__file__).parent / "lib").glob(f"lib{library}.*"), None)
    try:
        loaded = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(getattr(loaded, function), ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


def _offset() -> int:
    """How far into a Python tensor the address of its c10::TensorImpl is; 0 if it is not right in front."""
    offset = object.__basicsize__
    plain = torch.zeros(1, device="cpu")
    tensors = plain, nn.Parameter(plain)
    found = [ctypes.c_void_p.from_address(id(t) + offset).value == t._cdata for t in tensors]
    return offset if all(found) else 0


def _nothing(gradient: int) -> int:
    """The impl of an undefined tensor: the gradient of a tensor that has none."""
    ask = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(gradient)
    t = torch.zeros(1, device="cpu")
    return ask(t._cdata)[0] or 0
