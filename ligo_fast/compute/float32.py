"""Torch's setting for products of float32 matrices on a GPU.

It has two interfaces: `torch.set_float32_matmul_precision`, for every device, and the `fp32_precision` of
`torch.backends`. Once the newer one said what the older one cannot tell, to read the older one raises.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_SETTING = threading.RLock()


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
def using(precision: str, device: torch.device) -> Iterator[None]:
    """Products on a GPU in a precision ("bf16" is tf32).

    Torch has no finer switch than the process's: one thread at a time sets it, so that each finds it as it
    was; products of other code are made as it stands meanwhile.
    """
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    with _SETTING:
        before = matmul.fp32_precision
        matmul.fp32_precision = "ieee" if precision == "ieee" else "tf32"
        try:
            yield
        finally:
            matmul.fp32_precision = before
