"""Buffers of a model that is made here: what it has beside parameters, in the dtypes of the small model's."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn


def cast_as(small: nn.Module, large: nn.Module) -> None:
    """Give the large model's parameters the small one's dtype, and each buffer that of its namesake.

    RoPE's frequencies stay in float32 in a bfloat16 model that was loaded with `from_pretrained`: rounded,
    they would turn distant positions by other angles. Buffers without a namesake stay as they were made.
    """
    dtype = next(small.parameters()).dtype
    for p in large.parameters():
        _cast(p, dtype)
    cast_buffers(small, large)


def cast_buffers(small: nn.Module, large: nn.Module) -> None:
    """Give each buffer the dtype of its namesake in the small model; those of any layer are namesakes."""
    known = {_any_layer(n): b.dtype for n, b in small.named_buffers()}
    for name, b in large.named_buffers():
        _cast(b, known.get(_any_layer(name), b.dtype))


def _any_layer(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _cast(t: Tensor, dtype: torch.dtype) -> None:
    if t.is_floating_point() and dtype.is_floating_point:
        t.data = t.data.to(dtype)
