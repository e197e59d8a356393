"""Growing one family of weights in torch, on any device: Y[l] = U (sum_j D[l, j] W[j]) V^T, and its adjoint.

Two orders give the same result when U and V are shared by all layers. *Width first* applies the
products to the L1 small layers and blends the grown results; *depth first* blends and then applies the
products to L2 layers. With L1 <= L2 width first needs fewer FLOPs,

    2 L1 ((o2 - o1) o1 i1 + o2 i1 (i2 - i1))   + blend 2 L1 L2 o2 i2      (rows first)

and it works on a block of rows at a time: P = U[a:b] W[j], Z = P V^T, Y[:, a:b] = D Z. A block fits the
cache, so beside the parameters nothing large is ever allocated. The products on rows or on columns
first cost differently; the cheaper order is taken by working on transposed views.
Where D only selects, no layers are mixed and one source layer is grown after the other.

The pull-back of G = dL/dY works on the same blocks and keeps nothing from the forward pass:

    dD = G Z^T     Zg = D^T G     dV += Zg^T P     Q = Zg V     dU[a:b] += sum_j Q[j] W[j]^T
    dW[j] += U[a:b]^T Q[j]

P and Z are computed again, or, while the grown layers still are what `grow_` wrote, read from them:
Z = pinv(D) Y. Where V keeps or scales the old units, P is made in Z's old columns and read from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..maps import Identity, Map, Selection
from . import split
from .blend import Layout, Workspace, blend_, left_inverse, mix_layer, unblend, unmix_layer
from .order import Maps, copies, is_width_first, per_layer, rows_first
from .products import (
    BLOCK_BYTES,
    MIXED_ROWS,
    begins,
    block_of,
    blocks,
    columns_adjoint,
    keeps,
    old_scales,
    only_mixes,
    product,
    rows_product,
    selects,
    unscaled,
)


def grow_(
    outs: Sequence[Tensor],
    sources: Sequence[Tensor],
    depth: Map | None,
    rows: Maps,
    cols: Maps,
    order: str = "auto",
    dtype: torch.dtype = torch.float32,
    workspace: Workspace | None = None,
) -> None:
    """Write outs[l] = U (sum_j D[l, j] sources[j]) V^T in place, through any strides.

    Args:
        outs: L2 tensors (o2, i2), views of the large parameters, of any floating dtype.
        sources: L1 tensors (o1, i1).
        depth: D as a map (L2, L1), or None when L1 = L2 = 1.
        rows, cols: U (o2, o1) and V (i2, i1), or one of each per layer.
        dtype: of the factors and of the arithmetic.
        workspace: memory to work in, for callers that come again with the same factors.
    """
    for block in grow_blocks(sources, depth, rows, cols, order, dtype, workspace, True, outs[0].dtype):
        block.write([outs[layer][block.rows, block.cols] for layer in block.layers])


@dataclass(frozen=True)
class Block:
    """Some rows and columns of some layers.

    Attributes:
        along: 0 or 1; the next block has the next rows or the next columns.
        write: grows it into tensors of its shape, one a layer; or a part of it, along that dimension.
    """

    layers: Sequence[int]
    rows: slice
    cols: slice
    along: int
    write: Callable[..., None]

    @property
    def extent(self) -> int:
        """How many rows, or columns, it has along that dimension."""
        span = (self.rows, self.cols)[self.along]
        return int(span.stop - span.start)


def grow_blocks(
    sources: Sequence[Tensor],
    depth: Map | None,
    rows: Maps,
    cols: Maps,
    order: str = "auto",
    dtype: torch.dtype = torch.float32,
    workspace: Workspace | None = None,
    whole: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Iterator[Block]:
    """`grow_` block by block, for callers that do not hold the outs: each is written before the next is due.

    Args are those of `grow_`. `whole`: blocks are written whole, so that a product without a depth needs no
    memory but theirs where the outs have `dtype`. `out_dtype`: that of the outs, where it is known.
    """
    workspace = workspace or Workspace()
    how = "auto", dtype, workspace, whole, out_dtype
    if not is_width_first(depth, rows, cols, order):
        assert depth is not None
        us, vs = per_layer(rows, depth.shape[0]), per_layer(cols, depth.shape[0])
        for layer in range(depth.shape[0]):
            mixed = mix_layer(sources, depth, layer, dtype)
            for block in grow_blocks([mixed], None, us[layer], vs[layer], *how):
                yield replace(block, layers=[layer])
        return
    if len(sources) > 1 and isinstance(depth, Identity | Selection):  # nothing is mixed: one after the other
        us, vs = per_layer(rows, len(sources)), per_layer(cols, len(sources))
        for j, (layers, one) in copies(depth).items():
            for block in grow_blocks([sources[j]], one, us[j], vs[j], *how):
                yield replace(block, layers=[layers[n] for n in block.layers])
        return
    n, all_layers = len(sources), range(1 if depth is None else depth.shape[0])
    us, vs = per_layer(rows, n), per_layer(cols, n)
    if (parts := split.grow_rows(sources, depth, us, vs, dtype, out_dtype, workspace)) is not None:
        for a, b, write in parts:
            yield Block(all_layers, slice(a, b), slice(0, vs[0].shape[0]), 0, write)
        return
    flip = not rows_first(len(sources), rows, cols)
    if flip:
        sources = [s.t() for s in sources]
        us, vs = vs, us
    layout = Layout(flip, sources[0].new_empty(0, dtype=dtype), workspace)
    direct = whole and depth is None and out_dtype == dtype
    i2, i1 = vs[0].shape
    alone = only_mixes(sources, depth, us, vs, dtype)
    width = 0 if alone else n * ((0 if direct else i2) + (0 if begins(vs) else i1))
    cast = sources[0].numel() if sources[0].dtype != dtype and not all(map(selects, us)) else 0
    for a, b in blocks(us, n * i2 * dtype.itemsize, layout, width, cast):
        here = [s[a:b] for s in sources] if alone else None
        write = _writer(sources, block_of(us, a, b), vs, depth, layout, direct, here)
        some, every = slice(a, b), slice(0, i2)
        spans = (every, some) if flip else (some, every)
        yield Block(all_layers, *spans, int(flip), write)


def _writer(
    sources: Sequence[Tensor],
    rows: Sequence[Map],
    cols: Sequence[Map],
    depth: Map | None,
    layout: Layout,
    direct: bool,
    grown: Sequence[Tensor] | Tensor | None,
) -> Callable[..., None]:
    """`Block.write`: the products, unless given as `grown`, at the first call, then the mixing of layers."""

    def write(outs: Sequence[Tensor], part: slice = slice(None)) -> None:
        outs = [o.t() for o in outs] if layout.flip else outs
        if direct:
            product(sources, rows, cols, layout, out=outs[0])
            return
        nonlocal grown
        if grown is None:
            grown = product(sources, rows, cols, layout)[1]
        some = grown[:, part] if isinstance(grown, Tensor) else [x[part] for x in grown]
        blend_(outs, depth, some, layout)

    return write


def pullback_(
    grads: Sequence[Tensor | None],
    sources: Sequence[Tensor],
    depth: Map | None,
    rows: Maps,
    cols: Maps,
    d_depth: Map | None,
    d_rows: Maps | None,
    d_cols: Maps | None,
    order: str = "auto",
    dtype: torch.dtype = torch.float32,
    d_sources: Sequence[Tensor] | None = None,
    grown: Sequence[Tensor] | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Add the gradient of the factors, from grads[l] = dL/d outs[l], to d_depth, d_rows and d_cols.

    Args are those of `grow_`; a gradient map is like its map (None: not wanted), a gradient that is None
    is zero. `d_sources`, L1 tensors (o1, i1), receives dL/d sources. `grown`, the L2 layers in `dtype` as
    `grow_` wrote them from these factors and sources, saves their recomputation where D determines it.
    """
    unwanted = d_depth is None and d_rows is None and d_cols is None and d_sources is None
    if unwanted or all(g is None for g in grads):
        return
    if not is_width_first(depth, rows, cols, order):
        assert depth is not None
        us, vs = per_layer(rows, len(grads)), per_layer(cols, len(grads))
        for layer, g in enumerate(grads):
            if g is None:
                continue
            du, dv = (m if m is None or isinstance(m, Map) else m[layer] for m in (d_rows, d_cols))
            pullback_layer_(
                g, layer, sources, depth, us[layer], vs[layer], d_depth, du, dv, dtype, d_sources, workspace
            )
        return
    flip = not rows_first(len(sources), rows, cols)
    if flip:
        grads = [None if g is None else g.t() for g in grads]
        sources = [s.t() for s in sources]
        d_sources = None if d_sources is None else [s.t() for s in d_sources]
        grown = None if grown is None else [y.t() for y in grown]
        rows, cols, d_rows, d_cols = cols, rows, d_cols, d_rows
    n = len(sources)
    us, vs = per_layer(rows, n), per_layer(cols, n)
    if d_rows is not None or not all(map(selects, us)):  # else cast where blocks of them are taken
        sources = [s.to(dtype) for s in sources]
    layout = Layout(flip, sources[0].new_empty(0, dtype=dtype), workspace or Workspace())
    dus = None if d_rows is None else per_layer(d_rows, n)
    dvs = None if d_cols is None else per_layer(d_cols, n)
    learn_depth = depth is not None and d_depth is not None
    alone = only_mixes(sources, depth, us, vs, dtype)
    inverse = None if grown is None or alone else left_inverse(depth)
    if grown is None or (depth is not None and inverse is None) or not (learn_depth or dvs):
        grown, inverse = [], None
    i2, i1 = vs[0].shape
    scales = old_scales(vs) if dvs is not None and (grown or learn_depth) else None
    apart = scales is None or (depth is None and any(s is not None for s in scales))  # P is not made in Z
    width = 0 if depth is None else n * i2 * (2 if grown or (learn_depth and not alone) else 1)  # g and Z
    width += n * i1 if dvs is not None and apart else 0
    width += 0 if keeps(vs) and depth is not None else i1  # Q of one layer
    row_bytes = 2 * n * i2 * dtype.itemsize
    if depth is None:  # g and Z are where they are: what a block works in is P and Q, and needs few rows
        row_bytes = max(row_bytes, BLOCK_BYTES // MIXED_ROWS)
    for a, b in blocks(us, row_bytes, layout, width):
        block = block_of(us, a, b)
        known, p = [y[a:b] for y in grown], None
        z: Tensor | list[Tensor] | None = None
        if depth is None:
            z = known[0][None] if known else None
            g = next(t[a:b].to(dtype)[None] for t in grads if t is not None)
        else:
            if known:
                z = layout.empty(n, b - a, i2)
            elif alone:
                z = [s[a:b] for s in sources]
            elif learn_depth:
                p, z = product(sources, block, vs, layout)
            parts = [None if t is None else t[a:b] for t in grads]
            g = unblend(parts, depth, d_depth, z, layout, inverse, known)  # (L1, b, i2)
        if dvs is not None:
            if isinstance(z, Tensor) and scales is not None:
                old = z[:, :, :i1]
                p = unscaled(old, scales, layout.empty(*old.shape) if apart else old)
            elif p is None:
                p = rows_product(sources, block, layout.empty(n, b - a, i1), layout)
            folds = zip(vs, dvs, p, g, strict=True)
            if all(v is vs[0] for v in vs) and all(d is dvs[0] for d in dvs):
                tall = layout.folded(p), layout.folded(g)
                folds = zip(vs[: len(tall[0])], dvs[: len(tall[0])], *tall, strict=True)
            for v, dv, pj, gj in folds:
                v.accumulate(dv, pj.t(), gj.t())
        d_block = None if dus is None else block_of(dus, a, b)
        if d_sources is None and (d_block is None or not any(d.factors() for d in d_block)):
            continue
        for j, q in enumerate(columns_adjoint(vs, g, layout, own=depth is not None)):
            if d_block is not None:
                block[j].accumulate(d_block[j], sources[j], q)
            if d_sources is not None:
                d_sources[j].add_(block[j].left_adjoint(q))


def pullback_layer_(
    g: Tensor,
    layer: int,
    sources: Sequence[Tensor],
    depth: Map,
    u: Map,
    v: Map,
    d_depth: Map | None,
    du: Map | None,
    dv: Map | None,
    dtype: torch.dtype = torch.float32,
    d_sources: Sequence[Tensor] | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Add what the gradient `g` (o2, i2) of one large layer alone contributes, depth first.

    Args are those of `pullback_`, U and V those of this layer. Beside a block of `g` it works in a few
    matrices of the small size, whatever the numbers of layers.
    """
    mixed = mix_layer(sources, depth, layer, dtype)
    dx = torch.zeros_like(mixed)
    pullback_([g], [mixed], None, u, v, None, du, dv, "auto", dtype, [dx], workspace=workspace)
    unmix_layer(dx, sources, depth, layer, d_depth, d_sources)
