"""What the tests of the compiled selection and sums share: matrices of every layout, ways to run a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ligo_fast.native import cpu

compiled = pytest.mark.skipif(cpu.extension is None, reason=f"the extension is {cpu.state}")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["plain", "transposed", "strided", "unaligned", "apart"]


def matrix(shape: tuple[int, int], dtype: torch.dtype, how: str) -> Tensor:
    """Random values of a dtype in one of several layouts."""
    rows, columns = shape
    values = torch.randn(rows, columns).to(dtype)
    if how == "transposed":
        empty = torch.empty(columns, rows, dtype=dtype).t()
    elif how == "strided":
        empty = torch.empty(rows, columns + 3, dtype=dtype)[:, 1 : columns + 1]
    elif how == "unaligned":
        empty = torch.empty(rows * columns + 1, dtype=dtype)[1:].view(rows, columns)
    elif how == "apart":
        empty = torch.empty(rows, 2 * columns, dtype=dtype)[:, ::2]
    else:
        empty = torch.empty(rows, columns, dtype=dtype)
    return empty.copy_(values)


def poisoned(shape: tuple[int, int], dtype: torch.dtype, how: str) -> Tensor:
    return matrix(shape, dtype, how).fill_(torch.nan)


def check_threads_and_instructions(
    call: Callable[[Sequence[Any]], object], items: Sequence[Any], want: Sequence[Tensor], threads: int
) -> None:
    """Every instruction set writes the same bits into poisoned outs, on so many threads."""
    assert cpu.extension is not None
    names, before = cpu.extension.instructions(), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for name in names:
            cpu.extension.use(name)
            for item in items:
                item.out.fill_(torch.nan)
            call(items)
            assert all(torch.equal(item.out, w) for item, w in zip(items, want, strict=True))
    finally:
        cpu.extension.use(names[0])
        torch.set_num_threads(before)
