"""expand: the long-axis products of growth, many at once: out = (add +) sum_s A_s B_s.

One launch does every product of one kind of a whole model: C_u W[j] for all layers and families, their
adjoints, and the factors' gradients, whose sum over layers and families is the sum over segments s.

FLOPs 2 M N K a segment. Bytes: A, B, add and out once where L2 holds what tiles that run at once share; they
are neighbours in the launch order, and about a square (`table.tiles`). Products run on tensor cores with
float32 accumulation: `precision` "ieee" (float32 as it is), "tf32" or "bf16" (operands rounded to nearest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .configs import BAND, THIN, ProductConfig
from .launch import Launch
from .table import Matrix, Slots, tiles
from .tf32 import to_tf32
from .tune import tuned

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def product_kernel(
    pointers,
    table,
    segments,
    work,
    A_TYPE: tl.constexpr,
    B_TYPE: tl.constexpr,
    OUT_TYPE: tl.constexpr,
    A_ALONG_K: tl.constexpr,  # whether A's neighbours along k are neighbours in memory, else along m
    B_ALONG_N: tl.constexpr,
    ALIGN: tl.constexpr,  # elements that sizes and strides are multiples of; addresses then of 16 bytes
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tile = work + tl.program_id(0).to(tl.int64) * 4
    item = table + tl.load(tile).to(tl.int64) * 9
    m0 = tl.multiple_of(tl.load(tile + 1), BM)
    n0 = tl.multiple_of(tl.load(tile + 2), BN)
    M = tl.load(item + 2).to(tl.int32)
    N = tl.load(item + 3).to(tl.int32)
    out_stride = tl.load(item + 4)
    if ALIGN > 1:  # hints for wide loads: only of what runs along memory, nothing is known of the other size
        N = tl.multiple_of(N, ALIGN)
        if not A_ALONG_K:
            M = tl.multiple_of(M, ALIGN)
        out_stride = tl.multiple_of(out_stride, ALIGN)
    m = m0 + tl.arange(0, BM)
    n = n0 + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    first = tl.load(item + 6)
    for s in range(first, first + tl.load(item + 7)):
        segment = segments + s * 7
        a = tl.load(pointers + tl.load(segment))
        b = tl.load(pointers + tl.load(segment + 2))
        there = (a != 0) & (b != 0)  # a gradient may be missing
        K = tl.where(there, tl.load(segment + 4), 0).to(tl.int32)
        a = a.to(tl.pointer_type(A_TYPE)) + tl.load(segment + 1)
        b = b.to(tl.pointer_type(B_TYPE)) + tl.load(segment + 3)
        a_stride = tl.load(segment + 5)
        b_stride = tl.load(segment + 6)
        if ALIGN > 1:
            if A_ALONG_K or not B_ALONG_N:
                K = tl.multiple_of(K, ALIGN)
            a_stride = tl.multiple_of(a_stride, ALIGN)
            b_stride = tl.multiple_of(b_stride, ALIGN)
        if A_ALONG_K:
            a_ptrs = a + m.to(tl.int64)[:, None] * a_stride + k[None, :]
        else:
            a_ptrs = a + m[:, None] + k.to(tl.int64)[None, :] * a_stride
        if B_ALONG_N:
            b_ptrs = b + k.to(tl.int64)[:, None] * b_stride + n[None, :]
        else:
            b_ptrs = b + k[:, None] + n.to(tl.int64)[None, :] * b_stride
        if ALIGN > 1:
            a_ptrs = tl.multiple_of(a_ptrs, (1, 16) if A_ALONG_K else (16, 1))
            b_ptrs = tl.multiple_of(b_ptrs, (1, 16) if B_ALONG_N else (16, 1))
        for k0 in range(0, K, BK):
            inside = k < K - k0
            x = tl.load(a_ptrs, mask=(m < M)[:, None] & inside[None, :], other=0.0)
            y = tl.load(b_ptrs, mask=inside[:, None] & (n < N)[None, :], other=0.0)
            if PRECISION == "tf32":
                # halves are exact in it. In registers operands are turned, too: tensor cores read tf32 along
                # K. So copies have 16 bytes in every orientation; turning operands themselves they have 4.
                if x.dtype == tl.float32:
                    x = to_tf32(x)
                if y.dtype == tl.float32:
                    y = to_tf32(y)
            acc = tl.dot(x.to(OPERAND), y.to(OPERAND), acc, input_precision=PRECISION)
            a_ptrs += BK if A_ALONG_K else BK * a_stride
            b_ptrs += BK * b_stride if B_ALONG_N else BK
    offset = m.to(tl.int64)[:, None] * out_stride + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    add_slot = tl.load(item + 5)
    if add_slot >= 0:
        add = tl.load(pointers + add_slot).to(tl.pointer_type(tl.float32)) + tl.load(item + 8)
        add_ptrs = add + offset
        if ALIGN > 1:
            add_ptrs = tl.multiple_of(add_ptrs, (1, 16))
        acc += tl.load(add_ptrs, mask=mask, other=0.0)
    out = tl.load(pointers + tl.load(item)).to(tl.pointer_type(OUT_TYPE)) + tl.load(item + 1)
    out_ptrs = out + offset
    if ALIGN > 1:
        out_ptrs = tl.multiple_of(out_ptrs, (1, 16))
    tl.store(out_ptrs, acc.to(OUT_TYPE), mask=mask)


class Kind(NamedTuple):
    """What the compiler has to know of a launch."""

    a: torch.dtype
    b: torch.dtype
    out: torch.dtype
    along_k: bool
    along_n: bool
    align: int
    size: str


@dataclass(frozen=True)
class Product:
    """out (M, N), neighbours along N, = sum over segments of A (M, K) B (K, N), plus `add` where given.

    A segment with an empty slot counts as zero. `add` is float32, of the shape and strides of out; it may be
    out itself.
    """

    out: Matrix
    segments: Sequence[tuple[Matrix, Matrix]]
    add: Matrix | None = None

    @property
    def kind(self) -> Kind:
        """Products of one kind share a launch."""
        a, b = self.segments[0]
        along_k, along_n = a.runs(1), b.runs(1)
        n = 16 // min(m.dtype.itemsize for m in (self.out, a, b))
        any_k = not along_k and along_n  # nothing runs along K: a sum over the vocabulary, say
        whole = all(m.aligned(1, n) for m in (self.out, self.add) if m is not None) and all(
            x.aligned(int(along_k), n) and y.aligned(int(along_n), n) and (any_k or x.shape[1] % n == 0)
            for x, y in self.segments
        )
        size = "thin" if self.out.shape[0] <= THIN else "wide"
        return Kind(a.dtype, b.dtype, self.out.dtype, along_k, along_n, n if whole else 1, size)

    @property
    def flops(self) -> int:
        m, n = self.out.shape
        return sum(2 * m * n * a.shape[1] for a, _ in self.segments)


class ProductLaunch(Launch):
    """Every product of one kind, in one launch."""

    def __init__(
        self,
        products: Sequence[Product],
        slots: Slots,
        precision: str,
        config: ProductConfig | None = None,
    ) -> None:
        kinds = {p.kind for p in products}
        assert len(kinds) == 1, kinds
        self.kind = kinds.pop()
        self.precision = "ieee" if self.kind.size == "thin" else precision
        self.config = config or tuned(self.kind, self.precision, slots.device)
        rows: list[list[int]] = []
        segments: list[list[int]] = []
        for p in products:
            start = len(segments)
            for a, b in p.segments:
                strides = a.stride[0 if self.kind.along_k else 1], b.stride[0 if self.kind.along_n else 1]
                segments.append([a.slot, a.offset, b.slot, b.offset, a.shape[1], *strides])
            slot, offset = (-1, 0) if p.add is None else (p.add.slot, p.add.offset)
            assert p.add is None or (p.add.dtype, p.add.stride) == (torch.float32, p.out.stride)
            row = [p.out.slot, p.out.offset, *p.out.shape, p.out.stride[0]]
            rows.append([*row, slot, start, len(p.segments), offset])
        work = tiles([p.out.shape for p in products], self.config.m, self.config.n, BAND)
        self.flops = sum(p.flops for p in products)
        options = {
            "A_TYPE": TYPES[self.kind.a],
            "B_TYPE": TYPES[self.kind.b],
            "OUT_TYPE": TYPES[self.kind.out],
            "A_ALONG_K": self.kind.along_k,
            "B_ALONG_N": self.kind.along_n,
            "OPERAND": tl.bfloat16 if self.precision == "bf16" else tl.float32,
            "PRECISION": "tf32" if self.precision == "tf32" else "ieee",
            "BM": self.config.m,
            "BN": self.config.n,
            "BK": self.config.k,
            "num_warps": self.config.warps,
            "num_stages": self.config.stages,
        }
        options["ALIGN"] = self.kind.align
        super().__init__(product_kernel, slots.device, (rows, segments), work, options)
