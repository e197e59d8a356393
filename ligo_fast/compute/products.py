"""The products U W V^T of some layers, and V's adjoint, on a block of rows that fits a cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..maps import Identity, Map, PrefixDiagonal, Selection
from .blend import LINE, Layout

BLOCK_BYTES = 16 << 20  # working set of one block of rows: for a CPU's last-level cache, or nearly
GPU_BLOCK_BYTES = 128 << 20  # elsewhere a launch costs more than a missed cache
MIXED_ROWS = 512  # of a block of products on a CPU: with fewer, packing the sources takes its time
TINY = 1e-12  # a scale that nothing is divided by
ALIKE = 16.0  # how many times as large a unit's scale may be in one layer as in another
MIXED_BLOCKS = 8  # times BLOCK_BYTES that such a block may take


def blocks(
    rows: Sequence[Map], row_bytes: int, layout: Layout, width: int, fixed: int = 0
) -> Iterator[tuple[int, int]]:
    """Row ranges that cross no boundary of any map and whose working set fits BLOCK_BYTES.

    A row of a block works on `row_bytes` and takes `width` values of the workspace, a block `fixed` beside.
    """
    grain = math.lcm(*(u.grain for u in rows))
    unit = math.lcm(grain, LINE)  # on transposed views a block then starts at a cache line
    on_cpu = layout.like.device.type == "cpu"
    few = max((BLOCK_BYTES if on_cpu else GPU_BLOCK_BYTES) // max(1, row_bytes), 32)
    many = max(few, min(MIXED_ROWS, MIXED_BLOCKS * BLOCK_BYTES // max(1, row_bytes)) if on_cpu else 0)
    spans = []
    for start, stop in itertools.pairwise(sorted({c for u in rows for c in u.cuts()})):
        step = many if any(u.selected <= start for u in rows) else few
        step = max(step // grain, 1) * grain
        parts = math.ceil((stop - start) / step)  # of equal size, without a small one at the end
        equal = math.ceil((stop - start) / parts / unit) * unit
        spans += [(a, min(a + equal, stop)) for a in range(start, stop, equal)]
    layout.workspace.reserve(layout.like, width * max((b - a for a, b in spans), default=0) + fixed)
    for span in spans:
        layout.workspace.begin()
        yield span


def selects(m: Map) -> bool:
    return isinstance(m, Identity | Selection)


def block_of(maps: Sequence[Map], a: int, b: int) -> list[Map]:
    """Rows a..b of each map, made once where the layers share one."""
    made = {id(m): m.block(a, b) for m in maps}
    return [made[id(m)] for m in maps]


def keeps(cols: Sequence[Map]) -> bool:
    """Whether every V keeps the old units: then P is the first columns of Z."""
    return all(v.kept == v.shape[1] for v in cols)


def begins(cols: Sequence[Map]) -> bool:
    """Whether every V begins with the old units, kept or scaled: then P is made in the first columns of Z."""
    return all(v.kept == v.shape[1] or isinstance(v, PrefixDiagonal) for v in cols)


def old_scales(cols: Sequence[Map]) -> list[Tensor | None] | None:
    """What each V multiplies the old units by, None for one that keeps them; None where P must be made again.

    With these P is read off Z. Dividing a column by its scale leaves its relative error as it was; but where
    layers have a V each, Z = pinv(D) Y of a small scale has the rounding errors of large ones: they must be
    alike.
    """
    if not begins(cols):
        return None
    scales = [v.diag if isinstance(v, PrefixDiagonal) else None for v in cols]
    sizes = list({id(s): None if s is None else s.detach().abs() for s in scales}.values())
    given = [s for s in sizes if s is not None]
    if len(sizes) > 1:
        every = torch.stack([torch.ones_like(given[0]) if s is None else s for s in sizes])
        return scales if bool((every.amin(0) * ALIKE >= every.amax(0)).all()) else None
    return scales if all(bool((s > TINY).all()) for s in given) else None


def unscaled(z: Tensor, scales: Sequence[Tensor | None], out: Tensor) -> Tensor:
    """P, written into `out`, from the old columns of Z (L1, b, i1), which are P's times their scales."""
    if all(s is None for s in scales):
        return z
    for pj, zj, s in zip(out, z, scales, strict=True):
        torch.div(zj, 1.0 if s is None else s, out=pj)
    return out


def only_mixes(
    sources: Sequence[Tensor], depth: Map | None, rows: Sequence[Map], cols: Sequence[Map], dtype: torch.dtype
) -> bool:
    """Whether only layers are mixed: then they are read where they are."""
    widths = all(isinstance(m, Identity) for m in (*rows, *cols))
    return depth is not None and widths and sources[0].dtype == dtype


def rows_product(sources: Sequence[Tensor], rows: Sequence[Map], p: Tensor, layout: Layout) -> Tensor:
    """P[j] = U_j W_j (L1, b, i1), written into p; a source of another dtype is cast where it is mixed."""
    cast: Tensor | None = None
    for u, x, pj in zip(rows, sources, p, strict=True):
        if x.dtype != p.dtype and not selects(u):
            cast = layout.empty(1, *x.shape)[0] if cast is None else cast
            x = cast.copy_(x)
        u.left(x, out=pj)
    return p


def product(
    sources: Sequence[Tensor],
    rows: Sequence[Map],
    cols: Sequence[Map],
    layout: Layout,
    out: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """P[j] = U_j W_j (L1, b, i1) and Z[j] = P[j] V_j^T (L1, b, i2), written into out (b, i2) if given.

    Where V begins with the old units, P is made in the first i1 columns of Z and scaled there at the end:
    then None is returned for it, and `unscaled` gives it back.
    """
    n, b, i1, i2 = len(sources), rows[0].shape[0], sources[0].shape[1], cols[0].shape[0]
    z = layout.empty(n, b, i2) if out is None else out[None]
    inside = begins(cols)
    p = rows_product(sources, rows, z[:, :, :i1] if inside else layout.empty(n, b, i1), layout)
    rest, new = (z[:, :, i1:], block_of(cols, i1, i2)) if inside else (z, list(cols))
    shared = all(v is cols[0] for v in cols)
    if rest.shape[2] > 0:
        if shared and out is None:  # one tall product where memory allows
            new = new[:1] * len(layout.folded(z))
            p_rest = zip(layout.folded(p), layout.folded(rest), strict=True)
        else:
            p_rest = zip(p, rest, strict=True)
        for v, (pj, zj) in zip(new, p_rest, strict=True):
            v.left(pj.t(), out=zj.t())
    if not inside:
        return p, z
    scales = [v.diag if isinstance(v, PrefixDiagonal) else None for v in cols]
    for old, scale in [(p, scales[0])] if shared else zip(p, scales, strict=True):
        if scale is not None:
            old *= scale
    return None, z


def columns_adjoint(cols: Sequence[Map], g: Tensor, layout: Layout, own: bool) -> Iterable[Tensor]:
    """Q[j] = g[j] V_j (b, i1), each valid until the next is taken.

    Where V keeps the old units it replaces those columns of a g of our `own`.
    """
    i1 = cols[0].shape[1]
    if own and keeps(cols):
        shared = all(v is cols[0] for v in cols)
        for v, gj in zip(cols, layout.folded(g) if shared else g, strict=not shared):
            v.left_adjoint(gj.t(), out=gj[:, :i1].t())
        yield from g[:, :, :i1]
        return
    out = layout.empty(1, g.shape[1], i1)[0].t()
    for v, gj in zip(cols, g, strict=True):
        yield gj if isinstance(v, Identity) else v.left_adjoint(gj.t(), out=out).t()
