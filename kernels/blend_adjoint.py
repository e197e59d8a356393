"""The adjoint of blend: dx, dD and the gradients of the scales from one read of g (formulas in blend.py).

A program is a few warps that go through its rows one by one, COLUMNS numbers of every layer at a time. A tile
of g is loaded once, 16 bytes a thread, and is a factor of two products:

    dx (X_LAYERS, COLUMNS) = D^T g        dD^T (X_LAYERS, G_LAYERS) += x g^T

Small programs, several to a multiprocessor, wait for memory while others multiply. With STAGES > 1 the next
rows of x, and of g where it is not float32, are on their way to shared memory as well. The products are of
float32: "ieee", or on tensor cores three of tf32 each, which keep about 21 bits of every factor. Of sums
they may keep fewer: tensor cores cut, towards zero, where float32 rounds, and that adds up along a sum.

Bytes: with L1 <= X_LAYERS and L2 <= G_LAYERS g, x and dx once. Otherwise g ceil(L1 / X_LAYERS) times, and x
and dx ceil(L2 / G_LAYERS) times, each time but the first adding to dx. x is read for sums only. FLOPs: both
products, also where one is wanted, of L1 and L2 rounded up to X_LAYERS and G_LAYERS.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blend_table import address, addresses, sizes, vector


@triton.jit
def adjoint_kernel(
    pointers,
    table,
    lists,
    work,
    X_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    DX_TYPE: tl.constexpr,
    X_ALONG_C: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALED: tl.constexpr,  # whether any item has scales
    ADD: tl.constexpr,  # whether any item adds to dx, or has more than G_LAYERS layers
    G_LAYERS: tl.constexpr,
    X_LAYERS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,  # rows on their way at once
):
    tile = work + tl.program_id(0).to(tl.int64) * 4
    item = table + tl.load(tile).to(tl.int64) * 30
    first = tl.load(tile + 1)
    c0 = tl.multiple_of(tl.load(tile + 2), COLUMNS)
    L2, L1, R, C, x_row, x_column, g_row = sizes(item, ALIGN)
    dx_row = tl.load(item + 21)
    if ALIGN > 1:
        dx_row = tl.multiple_of(dx_row, ALIGN)
    span = tl.load(item + 29).to(tl.int32)  # rows of a program
    last = tl.minimum(R, first + span)
    has_dx = tl.load(item + 20) >= 0
    reads_x = (tl.load(item + 23) >= 0) | (tl.load(item + 25) >= 0) | (tl.load(item + 27) >= 0)
    c = c0 + tl.arange(0, COLUMNS)
    inside = c < C
    if SCALED:
        r_scale, r_scaled = vector(pointers, item + 14)
        c_scale, c_scaled = vector(pointers, item + 17)
        r_group = tl.load(item + 16).to(tl.int32)
        c_group = tl.load(item + 19).to(tl.int32)
        cs = tl.load(c_scale + c // c_group, mask=inside & c_scaled, other=1.0)
        dcs = tl.zeros((COLUMNS,), tl.float32)
    for l0 in range(0, L2, G_LAYERS):
        for j0 in range(0, L1, X_LAYERS):
            layer = l0 + tl.arange(0, G_LAYERS)
            j = j0 + tl.arange(0, X_LAYERS)
            g, g_there = addresses(pointers, lists + 2 * tl.load(item + 11), layer, layer < L2, G_TYPE)
            x_list = lists + 2 * tl.load(item + 8)
            x, x_there = addresses(pointers, x_list, j, (j < L1) & reads_x, X_TYPE)
            dx_list = lists + 2 * tl.load(item + 20)
            dx, dx_there = addresses(pointers, dx_list, j, (j < L1) & has_dx, DX_TYPE)
            g_ptrs = g[:, None] + first.to(tl.int64) * g_row + c[None, :]
            x_ptrs = x[:, None] + first.to(tl.int64) * x_row
            x_ptrs += c[None, :] if X_ALONG_C else c.to(tl.int64)[None, :] * x_column
            dx_ptrs = dx[:, None] + first.to(tl.int64) * dx_row + c[None, :]
            if ALIGN > 1:
                g_ptrs = tl.multiple_of(g_ptrs, (1, 16))
                dx_ptrs = tl.multiple_of(dx_ptrs, (1, 16))
                if X_ALONG_C:
                    x_ptrs = tl.multiple_of(x_ptrs, (1, 16))
            g_mask = g_there[:, None] & inside[None, :]
            x_mask = x_there[:, None] & inside[None, :]
            dx_mask = dx_there[:, None] & inside[None, :]
            depth = tl.load(pointers + tl.load(item)).to(tl.pointer_type(tl.float32)) + tl.load(item + 1)
            d_ptrs = depth + layer[None, :] * tl.load(item + 2) + j[:, None] * tl.load(item + 3)
            d_mask = (layer < L2)[None, :] & (j < L1)[:, None]
            d = tl.load(d_ptrs, mask=d_mask, other=0.0)
            dd = tl.zeros((X_LAYERS, G_LAYERS), tl.float32)
            for r in tl.range(first, last, num_stages=STAGES):
                gl = tl.load(g_ptrs, mask=g_mask, other=0.0).to(tl.float32)
                xj = tl.load(x_ptrs, mask=x_mask, other=0.0).to(tl.float32)
                acc = tl.dot(d, gl, input_precision=PRECISION)
                if SCALED:
                    rs = tl.load(r_scale + r // r_group, mask=r_scaled, other=1.0)
                    has_drs = tl.load(item + 25) >= 0
                    if has_drs | (tl.load(item + 27) >= 0):
                        t = tl.sum(xj * acc, axis=0)
                        dcs += t * rs
                        if has_drs:  # (column tiles, R)
                            sums = address(pointers, item + 25, tl.float32)[0]
                            sums += (c0 // COLUMNS).to(tl.int64) * R + r
                            old = tl.load(sums, mask=l0 + j0 > 0, other=0.0)
                            tl.store(sums, old + tl.sum(t * cs))
                    acc = acc * (rs * cs)[None, :]
                    xj = xj * (rs * cs)[None, :]
                if ADD:
                    adds = (tl.load(item + 22) != 0) | (l0 > 0)
                    acc += tl.load(dx_ptrs, mask=dx_mask & adds, other=0.0).to(tl.float32)
                tl.store(dx_ptrs, acc.to(DX_TYPE), mask=dx_mask)
                dd = tl.dot(xj, tl.trans(gl), dd, input_precision=PRECISION)
                g_ptrs += g_row
                x_ptrs += x_row
                dx_ptrs += dx_row
            if tl.load(item + 23) >= 0:  # (programs, L2, L1)
                sums = address(pointers, item + 23, tl.float32)[0]
                sums += tl.load(tile + 3).to(tl.int64) * L2 * L1
                tl.store(sums + layer[None, :] * L1 + j[:, None], dd, mask=d_mask)
            tl.debug_barrier()  # the next layers add to dx and drs, perhaps in other threads
    if SCALED and tl.load(item + 27) >= 0:  # (spans, C)
        sums = address(pointers, item + 27, tl.float32)[0]
        tl.store(sums + (first // span).to(tl.int64) * C + c, dcs, mask=inside)
