"""Mixing the layers of a stack, Y[l] = sum_j D[l, j] Z[j], and its adjoint; all of it bound by memory.

On the CPU the compiled form reads or writes each large layer once. Plain torch mixes a strip that fits the
cache and copies it, on any device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..maps import Dense, Map, Selection
from ..native import cpu

LINE = 16  # float32 values in a cache line, to which the compiled loops like to be aligned
CONDITION = (
    16.0  # of D: up to 32 the error stayed below twice that of torch, at 100 it was four times as large
)
STRIP = 1 << 16  # values of a layer blended at once: all layers of a strip stay in a core's own cache
GPU_STRIP = 1 << 19  # elsewhere a launch costs more than a missed cache


class Workspace:
    """Memory of the blocks, kept from one block and one call to the next: fresh pages are slow to come by."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._used = 0
        self.factors: dict[tuple[Map, bool], object] = {}  # packed by `split`, for as long as none changes

    def free(self) -> None:
        """Give the memory back: for callers who do not come again soon, or who need theirs meanwhile."""
        self._buffer, self._used = None, 0
        self.factors.clear()

    def reserve(self, like: Tensor, values: int) -> None:
        """Room for blocks of up to three stacks with so many values, like `like`."""
        buffer, values = self._buffer, values + 3 * LINE
        if buffer is None or buffer.numel() < values or _kind(buffer) != _kind(like):
            self._buffer = buffer = None  # freed before the larger one is there
            self._buffer = like.new_empty(values)

    def begin(self) -> None:
        """A new block: all that was taken is free again."""
        self._used = 0

    def take(self, like: Tensor, values: int) -> Tensor:
        """(values,) of any content; beyond what was reserved it is new memory."""
        start, self._used = self._used, self._used + -(-values // LINE) * LINE
        if self._buffer is None or self._buffer.numel() < self._used:
            return like.new_empty(values)
        return self._buffer[start : start + values]

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()  # a copy begins empty


def _kind(t: Tensor) -> tuple[torch.dtype, torch.device]:
    return t.dtype, t.device


@dataclass(frozen=True)
class Layout:
    """How a stack (layers, rows, columns) of blocks lies in memory: along the parameters' own rows.

    `flip` says that the work is on transposed views, so that columns are slower than rows.
    """

    flip: bool
    like: Tensor
    workspace: Workspace

    def empty(self, layers: int, rows: int, columns: int) -> Tensor:
        """A stack in the workspace's memory, valid for this block."""
        flat = self.workspace.take(self.like, layers * rows * columns)
        if self.flip:
            return flat.view(layers, columns, rows).transpose(1, 2)
        return flat.view(layers, rows, columns)

    def memory(self, stack: Tensor) -> Tensor:
        """The last two dimensions in memory's order, slower first."""
        return stack.transpose(-1, -2) if self.flip else stack

    def stack(self, layers: Stack) -> Stack:
        """All layers in memory's order."""
        return self.memory(layers) if isinstance(layers, Tensor) else [self.memory(x) for x in layers]

    def folded(self, stack: Tensor) -> list[Tensor]:
        """Matrices (rows, columns): one tall one for all layers where memory allows, else one a layer."""
        return list(stack) if self.flip or len(stack) == 1 else [stack.flatten(0, 1)]


Stack = Tensor | Sequence[Tensor]  # layers of one shape, in one tensor or each where it is


def _strips(layer: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of a layer's slower dimension; the blend of all layers' fits a core's own cache."""
    slow, fast = layer.shape
    step = max((STRIP if layer.device.type == "cpu" else GPU_STRIP) // max(1, fast), 1)
    for start in range(0, slow, step):
        yield start, min(start + step, slow)


class _Strip:
    """One matrix (layers, values) for every strip in turn; the memory is used again while the size stays."""

    def __init__(self, layers: int, like: Tensor) -> None:
        self.flat = like.new_empty(layers, 0)

    def empty(self, values: int) -> Tensor:
        if self.flat.shape[1] != values:
            self.flat = self.flat.new_empty(len(self.flat), values)
        return self.flat

    def gather(self, layers: Sequence[Tensor | None], a: int, b: int, columns: int) -> Tensor:
        """Rows a..b of each layer; zeros for a layer that is None."""
        flat = self.empty((b - a) * columns)
        for row, layer in zip(flat, layers, strict=True):
            if layer is None:
                row.zero_()
            else:
                row.view(b - a, columns).copy_(layer[a:b])
        return flat


def _flat(stack: Stack, a: int, b: int) -> Tensor:
    """Rows a..b of all layers (layers, values)."""
    return (
        stack[:, a:b].flatten(1)
        if isinstance(stack, Tensor)
        else torch.stack([x[a:b].flatten() for x in stack])
    )


def blend_(outs: Sequence[Tensor], depth: Map | None, z: Stack, layout: Layout) -> None:
    """outs[l] = sum_j D[l, j] z[j] for z (L1, b, i2)."""
    if depth is None or isinstance(depth, Selection):
        index = range(len(outs)) if depth is None else depth.index.tolist()
        scale = [1.0] * len(outs) if depth is None or depth.scale is None else depth.scale.tolist()
        for out, j, s in zip(outs, index, scale, strict=True):
            out.copy_(z[j] if s == 1.0 else z[j] * s)
        return
    outs, z = [layout.memory(out) for out in outs], layout.stack(z)
    if isinstance(depth, Dense) and cpu.combine_(outs, depth.M, list(z)):
        return
    strip = _Strip(len(outs), z[0])
    for a, b in _strips(z[0]):
        x = _flat(z, a, b)
        y = depth.left(x, out=strip.empty(x.shape[1]))
        for out, part in zip(outs, y, strict=True):
            out[a:b].copy_(part.view(b - a, -1))


def unblend(
    grads: Sequence[Tensor | None],
    depth: Map,
    d_depth: Map | None,
    z: Stack | None,
    layout: Layout,
    inverse: Tensor | None = None,
    grown: Sequence[Tensor] = (),
) -> Tensor:
    """The adjoint: sum_l D[l, j] grads[l] (L1, b, i2), and dD[l, j] += <grads[l], z[j]>.

    With an `inverse` (L1, L2) of D, z, one tensor, is written first: inverse grown, from the grown layers.
    """
    given = [number for number, g in enumerate(grads) if g is not None]
    parts = [None if g is None else layout.memory(g) for g in grads]
    first = next(g for g in grads if g is not None)
    result = layout.empty(depth.shape[1], *first.shape)
    into, known = layout.memory(result), [layout.memory(y) for y in grown]
    hidden = None if z is None else layout.stack(z)
    present = [p for p in parts if p is not None]
    layers = () if hidden is None else list(hidden)
    if isinstance(depth, Dense):
        matrix = depth.M[given] if len(given) < len(grads) else depth.M
        sums = cpu.pull_(into.unbind(), matrix, present, layers, inverse, known)
        if sums is not None:
            if isinstance(d_depth, Dense) and layers:
                d_depth.M.index_add_(0, torch.tensor(given, device="cpu"), sums.to(d_depth.M.dtype))
            return result
    strips, columns = [_Strip(len(layers), into) for layers in (parts, known)], into.shape[2]
    for a, b in _strips(into[0]):
        if inverse is not None:
            assert isinstance(hidden, Tensor)
            torch.mm(inverse, strips[1].gather(known, a, b, columns), out=hidden[:, a:b].flatten(1))
        flat = strips[0].gather(parts, a, b, columns)
        if d_depth is not None and hidden is not None:
            depth.accumulate(d_depth, _flat(hidden, a, b), flat)
        depth.left_adjoint(flat, out=into[:, a:b].flatten(1))
    return result


def mix_layer(sources: Sequence[Tensor], depth: Map, layer: int, dtype: torch.dtype) -> Tensor:
    """One large layer alone: sum_j D[layer, j] sources[j]."""
    if isinstance(depth, Selection):
        scale = 1.0 if depth.scale is None else float(depth.scale[layer])
        return sources[int(depth.index[layer])].to(dtype) * scale
    mixed = torch.empty_like(sources[0], dtype=dtype, memory_format=torch.contiguous_format)
    row = _row(depth, layer, mixed)
    combine_([mixed], row[None], sources)
    return mixed


def combine_(outs: Sequence[Tensor], matrix: Tensor, layers: Sequence[Tensor]) -> None:
    """outs[r] = sum_c matrix[r, c] layers[c], all of one shape."""
    if cpu.combine_(outs, matrix, layers):
        return
    for out, row in zip(outs, matrix, strict=True):
        out.zero_()
        for layer, share in zip(layers, row, strict=True):
            out.addcmul_(layer, share)


def _row(depth: Map, layer: int, like: Tensor) -> Tensor:
    """D[layer] (L1,)."""
    unit = torch.eye(depth.shape[1], dtype=like.dtype, device=like.device)
    return depth.block(layer, layer + 1).left(unit)[0]


def unmix_layer(
    dx: Tensor,
    sources: Iterable[Tensor],
    depth: Map,
    layer: int,
    d_depth: Map | None,
    d_sources: Sequence[Tensor] | None,
    inverse: Tensor | None = None,
) -> None:
    """The adjoint of `mix_layer`: dD[layer, j] += <dx, sources[j]>, d_sources[j] += D[layer, j] dx.

    With `inverse`, pinv(D) (L1, L2), `sources` are the L2 mixed layers, from which those follow.
    """
    if d_depth is not None and d_depth.factors():
        products = torch.stack([(dx * source).sum() for source in sources])
        products = products if inverse is None else inverse.to(products) @ products
        unit = torch.eye(depth.shape[1], dtype=dx.dtype, device=dx.device)
        depth.block(layer, layer + 1).accumulate(d_depth.block(layer, layer + 1), unit, products[None])
    if d_sources is not None:
        for d, share in zip(d_sources, _row(depth, layer, dx), strict=True):
            d.addcmul_(dx, share)


def left_inverse(depth: Map | None, limit: float = CONDITION) -> Tensor | None:
    """D's pseudoinverse (L1, L2), with which Z follows from Y = D Z; None where D does not determine Z.

    The rounding errors of Y come back at most cond(D) times larger: above `limit` there is none either.
    """
    if not isinstance(depth, Dense) or depth.shape[0] < depth.shape[1]:
        return None
    m = depth.M.detach().double().cpu()
    if not bool(m.isfinite().all()):
        return None
    u, s, vt = torch.linalg.svd(m, full_matrices=False)
    if not bool(s[-1] * limit >= s[0] > 0):
        return None
    inverse: Tensor = ((vt.t() / s) @ u.t()).to(depth.M)
    return inverse
