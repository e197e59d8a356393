"""bfloat16 in Triton's interpreter, which multiplies raw bits and cuts where it should round; for tests."""

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


def mend_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        kinds = source.dtype.scalar, to.scalar
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(widened(source.data), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(rounded(source.data), tl.bfloat16)
        return cast(self, source, to)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (TensorHandle(widened(m.data), tl.float32) for m in (a, b))
        return dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
