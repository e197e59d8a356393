"""The adjoint of blend: dx, dD and the gradients of the scales from one read of g (formulas in blend.py)."""

from __future__ import annotations

import triton
import triton.language as tl

from .blend_table import address, addresses, scale, sizes
from .tf32 import to_tf32


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
    LAYERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK_ROWS: tl.constexpr,  # of the tile, at once in a product for dD
):
    tile = work + tl.program_id(0).to(tl.int64) * 4
    item = table + tl.load(tile).to(tl.int64) * 30
    first_row = tl.multiple_of(tl.load(tile + 1), ROWS)
    c0 = tl.multiple_of(tl.load(tile + 2), COLUMNS)
    L2, L1, R, C, x_row, x_column, g_row = sizes(item, ALIGN)
    dx_row = tl.load(item + 21)
    if ALIGN > 1:
        dx_row = tl.multiple_of(dx_row, ALIGN)
    d_row = tl.load(item + 2)
    d_column = tl.load(item + 3)
    depth = tl.load(pointers + tl.load(item)).to(tl.pointer_type(tl.float32)) + tl.load(item + 1)
    x_list = lists + 2 * tl.load(item + 8)
    g_list = lists + 2 * tl.load(item + 11)
    r_group = tl.load(item + 16).to(tl.int32)
    c_group = tl.load(item + 19).to(tl.int32)
    d_slot = tl.load(item + 23)
    r_slot = tl.load(item + 25)
    c_slot = tl.load(item + 27)
    span = tl.load(item + 29).to(tl.int32)  # rows that one program works through, tile by tile
    dx_first = tl.load(item + 20)

    scaled_sums = (r_slot >= 0) | (c_slot >= 0)
    c_part = tl.zeros((COLUMNS,), tl.float32)
    for r0 in range(first_row, tl.minimum(R, first_row + span), ROWS):
        e = tl.arange(0, ROWS * COLUMNS)
        r = r0 + e // COLUMNS
        c = c0 + e % COLUMNS
        inside = (r < R) & (c < C)
        if (dx_first >= 0) | scaled_sums:
            if X_ALONG_C:
                x_offset = r.to(tl.int64) * x_row + c
            else:
                x_offset = r.to(tl.int64) * x_row + c.to(tl.int64) * x_column
            g_offset = r.to(tl.int64) * g_row + c
            rs = scale(pointers, item + 14, r_group, r, inside)
            cs = scale(pointers, item + 17, c_group, c, inside)
            t = tl.zeros((ROWS * COLUMNS,), tl.float32)
            for j0 in range(0, L1, LAYERS):
                j = j0 + tl.arange(0, LAYERS)
                acc = tl.zeros((LAYERS, ROWS * COLUMNS), tl.float32)
                for layer in range(0, L2):
                    g, there = address(pointers, g_list + 2 * layer, G_TYPE)
                    g_ptrs = g + g_offset
                    if ALIGN > 1:
                        g_ptrs = tl.multiple_of(g_ptrs, 16)
                    gl = tl.load(g_ptrs, mask=inside & there, other=0.0).to(tl.float32)
                    d = tl.load(depth + layer * d_row + j * d_column, mask=j < L1, other=0.0)
                    acc += d[:, None] * gl[None, :]
                mask = (j < L1)[:, None] & inside[None, :]
                if scaled_sums:
                    x = addresses(pointers, x_list, j, j < L1, X_TYPE)[0]
                    x_ptrs = x[:, None] + x_offset[None, :]
                    if ALIGN > 1:
                        x_ptrs = tl.multiple_of(x_ptrs, (1, 16))
                    xj = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
                    t += tl.sum(xj * acc, axis=0)
                if dx_first >= 0:
                    dx_list = lists + 2 * dx_first
                    dx = addresses(pointers, dx_list, j, j < L1, DX_TYPE)[0]
                    dx_ptrs = dx[:, None] + (r.to(tl.int64) * dx_row + c)[None, :]
                    if ALIGN > 1:
                        dx_ptrs = tl.multiple_of(dx_ptrs, (1, 16))
                    acc = acc * (rs * cs)[None, :]
                    if tl.load(item + 22) != 0:
                        acc += tl.load(dx_ptrs, mask=mask, other=0.0).to(tl.float32)
                    tl.store(dx_ptrs, acc.to(DX_TYPE), mask=mask)
            if r_slot >= 0:  # (column tiles, R)
                sums = address(pointers, item + 25, tl.float32)[0]
                part = tl.sum(tl.reshape(t * cs, (ROWS, COLUMNS)), axis=1)
                rows = r0 + tl.arange(0, ROWS)
                tl.store(sums + (c0 // COLUMNS).to(tl.int64) * R + rows, part, mask=rows < R)
            c_part += tl.sum(tl.reshape(t * rs, (ROWS, COLUMNS)), axis=0)

        if d_slot >= 0:  # (programs, L2, L1)
            sums = address(pointers, item + 23, tl.float32)[0]
            sums += tl.load(tile + 3).to(tl.int64) * L2 * L1
            h = tl.arange(0, CHUNK_ROWS * COLUMNS)
            for l0 in range(0, L2, 16):
                layer = l0 + tl.arange(0, 16)
                g, there = addresses(pointers, g_list, layer, layer < L2, G_TYPE)
                for j0 in range(0, L1, 16):
                    j = j0 + tl.arange(0, 16)
                    x = addresses(pointers, x_list, j, j < L1, X_TYPE)[0]
                    acc2 = tl.zeros((16, 16), tl.float32)
                    for chunk in tl.range(0, ROWS, CHUNK_ROWS, num_stages=1):
                        rr = r0 + chunk + h // COLUMNS
                        cc = c0 + h % COLUMNS
                        there2 = (rr < R) & (cc < C)
                        factor = scale(pointers, item + 14, r_group, rr, there2)
                        factor *= scale(pointers, item + 17, c_group, cc, there2)
                        g_ptrs = g[:, None] + (rr.to(tl.int64) * g_row + cc)[None, :]
                        if X_ALONG_C:
                            x_ptrs = x[:, None] + (rr.to(tl.int64) * x_row + cc)[None, :]
                        else:
                            x_ptrs = (
                                x[:, None] + (rr.to(tl.int64) * x_row + cc.to(tl.int64) * x_column)[None, :]
                            )
                        if ALIGN > 1:
                            g_ptrs = tl.multiple_of(g_ptrs, (1, 16))
                            if X_ALONG_C:
                                x_ptrs = tl.multiple_of(x_ptrs, (1, 16))
                        gl = tl.load(g_ptrs, mask=there[:, None] & there2[None, :], other=0.0).to(tl.float32)
                        xj = tl.load(x_ptrs, mask=(j < L1)[:, None] & there2[None, :], other=0.0).to(
                            tl.float32
                        )
                        gl = gl * factor[None, :]
                        if PRECISION == "tf32":
                            gl = to_tf32(gl)
                            xj = to_tf32(xj)
                        acc2 = tl.dot(gl, tl.trans(xj), acc2, input_precision=PRECISION)
                    mask2 = (layer < L2)[:, None] & (j < L1)[None, :]
                    sum_ptrs = sums + layer[:, None] * L1 + j[None, :]
                    acc2 += tl.load(sum_ptrs, mask=mask2 & (r0 > first_row), other=0.0)
                    tl.store(sum_ptrs, acc2, mask=mask2)
            tl.debug_barrier()  # the next tile adds to these sums, perhaps in other threads
    if c_slot >= 0:  # (spans, C)
        sums = address(pointers, item + 27, tl.float32)[0]
        columns = c0 + tl.arange(0, COLUMNS)
        tl.store(sums + (first_row // span).to(tl.int64) * C + columns, c_part, mask=columns < C)
