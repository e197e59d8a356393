"""What Triton's interpreter does not do as a GPU does, mended for tests.

It multiplies bfloat16 as raw bits and cuts where it should round, and takes no notice of tf32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton.language as tl


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16, kept as uint16, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16, kept as uint16: to the nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    up = 0x7FFF + ((bits >> 16) & 1)
    return np.where(np.isnan(values), 0x7FC0, (bits + up) >> 16).astype(np.uint16)


def cut(values: np.ndarray) -> np.ndarray:
    """float32 as a tensor core reads it for tf32: the upper 19 bits."""
    return (np.ascontiguousarray(values).view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32)


def mend_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        kinds = source.dtype.scalar, to.scalar
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(widened(source.data), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(rounded(source.data), tl.bfloat16)
        return cast(self, source, to)

    def create_dot(self: Any, a: Any, b: Any, acc: Any, precision: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (TensorHandle(widened(m.data), tl.float32) for m in (a, b))
        elif a.dtype.scalar == tl.float32 and precision.name == "TF32":
            a, b = (TensorHandle(cut(m.data), tl.float32) for m in (a, b))
        return dot(self, a, b, acc, precision, *rest)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
