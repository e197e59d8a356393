"""The compiled mixing of layers on the CPU (csrc/): loading it, and checking what goes in.

It is optional: without it torch does the same in more passes over memory. LIGO_FAST_NO_EXT=1 switches it off.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STREAM_BYTES = 4 << 20  # from here on outputs pass the cache by: nobody reads them before they are evicted


def _load() -> tuple[Any, str]:
    """The module and its state in words; the module is None when it is not there."""
    if os.environ.get("LIGO_FAST_NO_EXT") == "1":
        return None, "switched off by LIGO_FAST_NO_EXT=1"
    try:
        module = import_module("ligo_fast._cpu")
    except ImportError as error:
        return None, f"not built ({error})"
    return module, f"compiled, {module.instructions()}"


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


def _team() -> Any:
    return extension.Team(torch.get_num_threads(), _gomp_parallel())


def takes(*stacks: Sequence[Tensor]) -> bool:
    """Whether the compiled functions can work on these layers: float32 rows in this process' memory."""
    return extension is not None and all(
        type(t) in (Tensor, nn.Parameter)
        and t.device.type == "cpu"
        and t.dtype == torch.float32
        and t.dim() == 2
        and (t.stride(1) == 1 or t.shape[1] == 1)
        for stack in stacks
        for t in stack
    )


def _stack(layers: Sequence[Tensor]) -> Any:
    return extension.Stack([t.data_ptr() for t in layers], [t.stride(0) for t in layers])


def _check(shape: torch.Size, *stacks: Sequence[Tensor]) -> None:
    """Addresses carry no sizes: a wrong one would write where it must not."""
    for stack in stacks:
        if not takes(stack) or any(t.shape != shape for t in stack):
            raise ValueError(f"layers must be float32 {tuple(shape)} with rows of stride 1")


def _matrix(m: Tensor, rows: int, columns: int) -> Tensor:
    if m.shape != (rows, columns) or m.dtype != torch.float32:
        raise ValueError(f"the matrix is {tuple(m.shape)} {m.dtype}, not {(rows, columns)} float32")
    return m.detach().contiguous()


def combine_(outs: Sequence[Tensor], matrix: Tensor, layers: Sequence[Tensor]) -> None:
    """outs[r] = sum_c matrix[r, c] layers[c], all (rows, columns), which may not overlap."""
    shape = outs[0].shape
    _check(shape, outs, layers)
    m = _matrix(matrix, len(outs), len(layers))
    stream = len(outs) * shape.numel() * 4 >= STREAM_BYTES
    extension.combine(_stack(outs), m.data_ptr(), _stack(layers), *shape, stream, _team())
    torch.autograd.graph.increment_version(outs)


def pull_(
    mixed: Sequence[Tensor],
    matrix: Tensor,
    grads: Sequence[Tensor],
    z: Sequence[Tensor] = (),
    inverse: Tensor | None = None,
    grown: Sequence[Tensor] = (),
    sums: bool = True,
) -> Tensor | None:
    """mixed[j] = sum_l matrix[l, j] grads[l]; returns <grads[l], z[j]> in float64, or None without `sums`.

    With `inverse` (len(z), len(grown)) the layers z = inverse grown are written first.
    """
    shape = mixed[0].shape
    _check(shape, mixed, grads, z, grown)
    m = _matrix(matrix.t(), len(mixed), len(grads))
    b = None if inverse is None else _matrix(inverse, len(z), len(grown))
    result = torch.empty(len(grads), len(z), dtype=torch.float64) if sums else None
    extension.pull(
        _stack(mixed), m.data_ptr(), _stack(grads), _stack(z),
        0 if b is None else b.data_ptr(), _stack(grown),
        0 if result is None else result.data_ptr(), *shape, _team(),
    )  # fmt: skip
    torch.autograd.graph.increment_version([*mixed, *z] if b is not None else mixed)
    return result
