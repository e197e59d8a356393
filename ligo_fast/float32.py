"""Torch's setting for products of float32 matrices on a GPU.

It has two interfaces: `torch.set_float32_matmul_precision`, for every device, and the `fp32_precision` of
`torch.backends`. Once the newer one said what the older one cannot tell, to read the older one raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def products() -> str:
    """ "ieee", "tf32" or, where only the older interface can say so ("medium"), "bf16"."""
    newer = torch.backends.cuda.matmul.fp32_precision
    if newer == "ieee":
        return "ieee"
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        return "tf32" if newer == "tf32" else "ieee"
    return {"highest": "ieee", "high": "tf32"}.get(older, "bf16")


@contextlib.contextmanager
def using(precision: str) -> Iterator[None]:
    """Products on GPUs in a precision ("bf16" is tf32); torch has no finer switch than the process's."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee" if precision == "ieee" else "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
