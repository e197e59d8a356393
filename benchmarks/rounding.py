"""What a product of a given precision costs in accuracy, on any device: the yardstick of the GPU gates.

Tensor cores multiply operands of tf32 (19 bits of float32) or bfloat16 and add up in float32. Here operands
are rounded to the nearest and multiplied in float32, forward and backward, so that the error of the kernels
has something to be compared with, whatever library would do a product on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor


def rounded(x: Tensor, precision: str) -> Tensor:
    """An operand of a product of that precision, in float32: to the nearest, tf32's ties away from zero."""
    x = x.float()
    if precision == "tf32":
        bits = x.contiguous().view(torch.int32)
        return (torch.where(x.isfinite(), bits + 0x1000, bits) & ~0x1FFF).view(torch.float32)
    return x.bfloat16().float() if precision == "bf16" else x


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, precision: str) -> Tensor:
        ctx.precision = precision
        a, b = rounded(a, precision), rounded(b, precision)
        ctx.save_for_backward(a, b)
        return float32_product(a, b)

    @staticmethod
    def backward(ctx, g: Tensor):
        a, b = ctx.saved_tensors
        g = rounded(g, ctx.precision)
        if b.dim() == 1:  # a matrix by a vector
            return torch.outer(g, b), float32_product(a.t(), g), None
        return float32_product(g, b.t()), float32_product(a.t(), g), None


def float32_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 whatever torch's settings say."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return a @ b
    finally:
        torch.set_float32_matmul_precision(before)


def product(precision: str) -> Callable[[Tensor, Tensor], Tensor]:
    """torch.matmul with operands rounded to a precision; the result is float32."""
    return partial(_apply, precision)


def _apply(precision: str, a: Tensor, b: Tensor) -> Tensor:
    return _Product.apply(a, b, precision)
