"""The compiled C++ (csrc/): loading it, the mixing of layers, and checking what goes in.

It is optional: without it torch does the same in more passes over memory. LIGO_FAST_NO_EXT=1 switches it off.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Sizes of csrc's tables and how many of its methods there are, as select.py, sums.py, this file, split.py,
# layouts.py and borrow.py use them.
TABLES = {
    "ITEM_WORDS": 24,
    "SUM_WORDS": 21,
    "STACK_FIELDS": 3,
    "MATRIX_FIELDS": 5,
    "READER_METHODS": 7,
    "TORCH_FIELDS": 8,
}
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
STREAM_BYTES = 4 << 20  # from here on outputs pass the cache by: nobody reads them before they are evicted


def stale(module: Any, tables: dict[str, int]) -> str:
    """Why a module does not fit these Python files; empty when it does."""
    found = {name: getattr(module, name, None) for name in tables}
    return "" if found == tables else f"built from other sources: it has tables of {found}, not {tables}"


def warn_of(name: str, why: str) -> str:
    """Say once that a compiled module is there and is not used: all is right and slower. Returns `why`."""
    warnings.warn(
        f"{name} is not used: {why}; torch does its work, slower. Install ligo_fast again",
        RuntimeWarning,
        stacklevel=2,
    )
    return why


def _load() -> tuple[Any, str]:
    """The module and its state in words; the module is None when it is not there."""
    if os.environ.get("LIGO_FAST_NO_EXT") == "1":
        return None, "switched off by LIGO_FAST_NO_EXT=1"
    try:
        module = import_module("ligo_fast._cpu")
    except ImportError as error:
        return None, f"not built ({error})"
    if why := stale(module, TABLES):
        return None, warn_of("ligo_fast._cpu", why)
    return module, f"compiled, {module.instructions()[0]}"


extension, state = _load()


@functools.cache
def _gomp_parallel() -> int:
    """Address of GOMP_parallel in the OpenMP runtime that torch computes with; 0 if it has another kind."""
    library = next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"), None)
    try:
        symbol = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(symbol, ctypes.c_void_p).value or 0


def why_not() -> str:
    """Why the compiled functions are off; empty when they are not."""
    return "" if extension is not None else state


def team() -> Any:
    """torch's threads."""
    return extension.Team(torch.get_num_threads(), _gomp_parallel())


def _takes(shape: torch.Size, *stacks: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> bool:
    """Whether the compiled functions can work on these layers: addresses carry neither sizes nor types."""
    return extension is not None and all(
        type(t) in (Tensor, nn.Parameter)
        and t.shape == shape
        and t.dtype == dtype
        and t.is_cpu
        and t.stride(1) == 1
        for stack in stacks
        for t in stack
    )


def _stack(layers: Sequence[Tensor]) -> Any:
    kind = TYPES[layers[0].dtype] if layers else 0
    return extension.Stack([t.data_ptr() for t in layers], [t.stride(0) for t in layers], kind)


def _matrix(m: Tensor, rows: int, columns: int) -> Tensor:
    if m.shape != (rows, columns) or m.dtype != torch.float32:
        raise ValueError(f"the matrix is {tuple(m.shape)} {m.dtype}, not {(rows, columns)} float32")
    return m.detach().contiguous()


def combine_(outs: Sequence[Tensor], matrix: Tensor, layers: Sequence[Tensor]) -> bool:
    """outs[r] = sum_c matrix[r, c] layers[c], all of one shape (rows, columns); outs overlap nothing.

    The sums are float32; outs of bfloat16 or float16 are rounded once. False, and nothing done, where the
    layers are not float32, or the outs not of one such dtype, in this machine's memory with rows of stride 1.
    """
    shape, dtype = outs[0].shape, outs[0].dtype
    if dtype not in TYPES or not _takes(shape, outs, dtype=dtype) or not _takes(shape, layers):
        return False
    m = _matrix(matrix, len(outs), len(layers))
    stream = len(outs) * shape.numel() * dtype.itemsize >= STREAM_BYTES
    extension.combine(_stack(outs), m.data_ptr(), _stack(layers), *shape, stream, team())
    torch.autograd.graph.increment_version(outs)
    return True


def pull_(
    mixed: Sequence[Tensor],
    matrix: Tensor,
    grads: Sequence[Tensor],
    z: Sequence[Tensor] = (),
    inverse: Tensor | None = None,
    grown: Sequence[Tensor] = (),
) -> Tensor | None:
    """mixed[j] = sum_l matrix[l, j] grads[l]; returns <grads[l], z[j]> (len(grads), len(z)) in float64.

    With `inverse` (len(z), len(grown)) the layers z = inverse grown are written first. None, and nothing
    done, where the layers are not what `combine_` takes.
    """
    shape = mixed[0].shape
    if not _takes(shape, mixed, grads, z, grown):
        return None
    m = _matrix(matrix.t(), len(mixed), len(grads))
    b = None if inverse is None else _matrix(inverse, len(z), len(grown))
    sums = torch.empty(len(grads), len(z), dtype=torch.float64, device="cpu")
    extension.pull(
        _stack(mixed), m.data_ptr(), _stack(grads), _stack(z),
        0 if b is None else b.data_ptr(), _stack(grown), sums.data_ptr(), *shape, team(),
    )  # fmt: skip
    torch.autograd.graph.increment_version([*mixed, *z] if b is not None else mixed)
    return sums
