"""What a blend's kernels read from the tables: addresses, sizes and scales."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def address(pointers, pair, TYPE: tl.constexpr):
    """The address of a (slot, offset) pair; and whether the slot holds a tensor."""
    base = tl.load(pointers + tl.load(pair))
    return base.to(tl.pointer_type(TYPE)) + tl.load(pair + 1), base != 0


@triton.jit
def addresses(pointers, pairs, number, inside, TYPE: tl.constexpr):
    """The addresses of some of a list of pairs; and whether the slots hold tensors."""
    slot = tl.load(pairs + 2 * number, mask=inside, other=0)
    base = tl.load(pointers + slot, mask=inside, other=0)
    offset = tl.load(pairs + 2 * number + 1, mask=inside, other=0)
    return base.to(tl.pointer_type(TYPE)) + offset, base != 0


@triton.jit
def vector(pointers, pair):
    """The address of float32 numbers; and whether there are any, which a slot of -1 says there are not."""
    slot = tl.load(pair)
    base = tl.load(pointers + tl.maximum(slot, 0)).to(tl.pointer_type(tl.float32))
    return base + tl.load(pair + 1), slot >= 0


@triton.jit
def scale(pointers, pair, group, index, inside):
    """scale[index // group], or ones where the slot is -1."""
    base, there = vector(pointers, pair)
    return tl.load(base + index // group, mask=inside & there, other=1.0)


@triton.jit
def sizes(item, ALIGN: tl.constexpr):
    """L2, L1, R, C, the strides of x along R and C and of y along R, with what is known of alignment."""
    L2 = tl.load(item + 4).to(tl.int32)
    L1 = tl.load(item + 5).to(tl.int32)
    R = tl.load(item + 6).to(tl.int32)
    C = tl.load(item + 7).to(tl.int32)
    x_row = tl.load(item + 9)
    x_column = tl.load(item + 10)
    y_row = tl.load(item + 12)
    if ALIGN > 1:
        C = tl.multiple_of(C, ALIGN)
        y_row = tl.multiple_of(y_row, ALIGN)
        x_row = tl.multiple_of(x_row, ALIGN)
    return L2, L1, R, C, x_row, x_column, y_row
