"""Rounding to tf32, which `tl.dot` leaves to its caller: tensor cores drop the last 13 bits of a float32."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def to_tf32(x):
    """float32 rounded to the nearest tf32, ties away from zero; infinities and NaNs stay.

    One PTX instruction; the same in integers, for the interpreter, would be one more on a GPU, or lose NaNs.
    """
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(tl.abs(x) < float("inf"), bits + 0x1000, bits) & -0x2000
        y = bits.to(tl.float32, bitcast=True)
    else:
        y = tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], tl.float32, True, 1)
    return y
