"""Growing bfloat16 weights with the matrix units of a CPU (AMX): Y = U X V^T, accurate to bfloat16.

The factors are float32 and split in two bfloat16 parts each; csrc/cpu/split.h says why that is enough. Of
U = [diag; C] only C takes products: rows that are kept are scaled and rounded once, on the way. The old rows
of Y are diag_u X [diag_v; C_v]^T; the new ones P [diag_v; C_v]^T with P = C_u X in float32. Everywhere else
`backend_torch` takes float32 products.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..maps import Dense, Identity, Kron, Map, Selection, as_selection, kron
from ..native import cpu
from .blend import Workspace

PAIR = 32  # rows of a packed factor that belong together
SMALLEST = 32  # rows and columns of a source that are worth it
NEW_BYTES = 64 << 20  # of P at a time

Write = Callable[..., None]


def why_not() -> str:
    """Why the units are not used; empty when they are."""
    if os.environ.get("LIGO_FAST_BACKEND") == "torch":
        return "LIGO_FAST_BACKEND=torch"
    if cpu.extension is None:
        return cpu.state
    return "" if cpu.extension.has_matrix_units() else "the processor, its system or the compiler has no AMX"


@dataclass(frozen=True)
class Packed:
    """A factor (rows, depth) in two bfloat16 parts, as the left or the right operand of a product."""

    rows: int
    depth: int
    left: bool
    memory: Tensor = field(repr=False)


def pack(factor: Tensor, left: bool) -> Packed:
    """A float32 matrix C as `left_product` or `right_product` takes it: as many bytes, and padding."""
    factor = factor.detach().to(torch.float32).contiguous()
    size = cpu.extension.packed_bytes(*factor.shape)
    memory = torch.empty(size, dtype=torch.uint8, device="cpu")  # 64-byte aligned
    cpu.extension.pack(memory.data_ptr(), _matrix(factor), left, cpu.team())
    return Packed(factor.shape[0], factor.shape[1], left, memory)


def left_product(out: Tensor, factor: Packed, x: Tensor, start: int = 0) -> None:
    """out (n, m) = C[start : start + n] x for x (k, m); `start` is a multiple of 32.

    Args:
        out: float32. x: float32 or bfloat16. Both with rows of stride 1.

    Raises:
        ValueError: for shapes or dtypes that do not fit.
    """
    (n, m), (k, columns) = out.shape, x.shape
    inside = start % PAIR == 0 and start + n <= factor.rows and factor.left
    if out.dtype != torch.float32 or columns != m or k != factor.depth or not inside:
        raise ValueError(
            f"rows {start} to {start + n} of {factor} times {(k, columns)} into {(n, m)} {out.dtype}"
        )
    address = factor.memory.data_ptr() + start // PAIR * cpu.extension.packed_bytes(PAIR, k)
    cpu.extension.left_product(_matrix(out), address, _matrix(x), cpu.team())
    torch.autograd.graph.increment_version([out])


def right_product(
    out: Tensor,
    x: Tensor,
    factor: Packed | None,
    kept: bool = True,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> None:
    """out (m, k + n) = diag(rows) x [diag(columns); C]^T, or without its first k columns, for x (m, k).

    Args:
        out, x: float32 or bfloat16, with rows of stride 1.
        factor: C (n, k), None for no rows.
        kept: whether C has the diagonal above it.
        rows, columns: float32, or None for ones.

    Raises:
        ValueError: for shapes or dtypes that do not fit.
    """
    (m, k), n = x.shape, 0 if factor is None else factor.rows
    old = k if kept else 0
    fits = factor is None or (factor.depth == k and not factor.left)
    for scale, length in ((rows, m), (columns, k)):
        if scale is not None:
            fits &= scale.dtype == torch.float32 and scale.shape == (length,) and scale.is_contiguous()
    if out.shape != (m, old + n) or not fits:
        raise ValueError(f"{(m, k)} times {factor} into {tuple(out.shape)}, or scales that do not fit")
    memory = None if factor is None else factor.memory
    cpu.extension.right_product(
        _matrix(out), _matrix(x), _address(rows), old, _address(columns), _address(memory), cpu.team()
    )
    torch.autograd.graph.increment_version([out])


def grow_rows(
    sources: Sequence[Tensor],
    depth: Map | None,
    rows: Sequence[Map],
    cols: Sequence[Map],
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    workspace: Workspace,
) -> Iterator[tuple[int, int, Write]] | None:
    """Y = U X V^T as ranges of its rows, and what writes each into tensors; None if it is not for the units.

    It is for one bfloat16 source of a good size on the CPU, grown into one or several equal bfloat16 layers
    by maps whose rows take one unit each or mix, in that order.
    """
    plain = isinstance(depth, Identity | None) or (isinstance(depth, Selection) and depth.scale is None)
    types = dtype == torch.float32 and out_dtype == sources[0].dtype == torch.bfloat16
    if len(sources) > 1 or not plain or not types or not _fits(sources[0]) or why_not():
        return None
    x, u, v = sources[0], rows[0], cols[0]
    if min(x.shape) < SMALLEST or not (u.here and v.here) or all(m.selected == m.shape[0] for m in (u, v)):
        return None
    old, kept = taken(u), taken(v)
    if old is None or kept is None or (v.selected and (kept.start != 0 or v.selected != v.shape[1])):
        return None
    return _ranges(x, u, v, old, kept, workspace)


def taken(m: Map) -> Selection | None:
    """The leading rows of a map, those that take one unit each; None where they cannot be told apart."""
    if not m.selected:
        return Selection.run(0, 0, m.shape[1])
    head = _simple(m.block(0, m.selected))
    return as_selection(head) if isinstance(head, Identity | Selection) else None


def _simple(m: Map) -> Map:
    """A selection of whole heads as one of units."""
    return kron(_simple(m.A), _simple(m.B)) if isinstance(m, Kron) else m


def _ranges(
    x: Tensor, u: Map, v: Map, old: Selection, kept: Selection, workspace: Workspace
) -> Iterator[tuple[int, int, Write]]:
    columns = None if kept.scale is None else kept.scale.detach().float().contiguous()
    right = None if v.selected == v.shape[0] else _packed(v, False, workspace)

    def into(outs: Sequence[Tensor], source: Tensor, scale: Tensor | None) -> None:
        first = outs[0] if _fits(outs[0]) else outs[0].new_empty(outs[0].shape)
        right_product(first, source, right, bool(v.selected), scale, columns)
        for out in outs:
            if out is not first:
                out.copy_(first)

    def write_old(outs: Sequence[Tensor], part: slice = slice(None)) -> None:
        a, b, _ = part.indices(u.selected)
        some = old.block(a, b)
        assert isinstance(some, Selection)
        scale = None if some.scale is None else some.scale.detach().float().contiguous()
        into(outs, some.replace({}).left(x), scale)

    if u.selected:
        yield 0, u.selected, write_old
    if u.selected == u.shape[0]:
        return
    left = _packed(u, True, workspace)
    inner = u.shape[1] // left.depth
    wide = x if inner == 1 else x.contiguous().view(left.depth, -1)
    like, step = x.new_empty(0, dtype=torch.float32), max(NEW_BYTES // (4 * wide.shape[1]) // PAIR, 1) * PAIR
    for a in range(0, left.rows, step):
        b = min(a + step, left.rows)
        workspace.reserve(like, (b - a) * wide.shape[1])
        workspace.begin()
        p = workspace.take(like, (b - a) * wide.shape[1])
        left_product(p.view(b - a, -1), left, wide, a)
        fresh = p.view(-1, x.shape[1])

        def write_new(outs: Sequence[Tensor], part: slice = slice(None), fresh: Tensor = fresh) -> None:
            into(outs, fresh[part], None)

        yield u.selected + a * inner, u.selected + b * inner, write_new


def _packed(m: Map, left: bool, workspace: Workspace) -> Packed:
    """The rows of a map that mix, packed once for a workspace; on the left those of whole heads, if so."""
    known = workspace.factors.get((m, left))
    if not isinstance(known, Packed):
        mixing = m.block(m.selected, m.shape[0]) if m.selected else m
        while left and isinstance(mixing, Kron) and isinstance(mixing.B, Identity):
            mixing = mixing.A  # all units of a head alike
        known = pack(mixing.M if isinstance(mixing, Dense) else mixing.dense(torch.float32), left)
        workspace.factors[m, left] = known
    return known


def _fits(t: Tensor) -> bool:
    """Whether compiled code can work on a matrix: an address carries neither strides nor kind."""
    return (
        type(t) in (Tensor, nn.Parameter)
        and t.is_cpu
        and t.dim() == 2
        and (t.stride(1) == 1 or t.shape[1] < 2)
    )


def _matrix(t: Tensor) -> Any:
    if not _fits(t) or t.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"a {type(t).__name__} {t.dtype} of strides {t.stride()} on {t.device}")
    return cpu.extension.Matrix(t.data_ptr(), *t.shape, t.stride(0), cpu.TYPES[t.dtype])


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
