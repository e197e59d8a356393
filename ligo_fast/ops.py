"""The differentiable growth op: one family of weights, Y[l] = U (sum_j D[l, j] W[j]) V^T."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .compute import library
from .compute.backend_select import why_not_select
from .compute.backend_torch import grow_, pullback_
from .compute.backends import resolve_precision, why_not_triton
from .compute.order import Maps, is_width_first, per_layer
from .compute.sums import pull_stack
from .errors import GrowthError
from .maps import Dense, Identity, Map
from .models.modes import no_autocast
from .native.refusal import overlap

F = TypeVar("F", bound=Callable[..., Any])


def grow(
    stack: Tensor,
    depth: Tensor | Map | None,
    out_map: Maps | Tensor | Sequence[Tensor],
    in_map: Maps | Tensor | Sequence[Tensor],
    out: Tensor | None = None,
    order: str = "auto",
    precision: str = "auto",
) -> Tensor:
    """Grow one family of weights: Y[l] = U (sum_j D[l, j] W[j]) V^T.

    Differentiable in `stack`, `depth` and the tensors of the maps (LiGO, Wang et al. 2023, Eq. 5-8). Under
    torch.compile it is traced as plain products, so any backend may fuse it. On CUDA tensors the Triton
    kernels do it, as one registered op in eager mode and under torch.compile alike. torch.func's transforms
    (grad, vmap) see plain products, too, and may be nested; autograd has first derivatives only. Autocast
    changes nothing but the backward pass of plain products that torch.compile traces under the caller's
    autocast.

    Args:
        stack: (L1, o1, i1), floating point.
        depth: (L2, L1), a tensor or a map; None leaves the layers as they are (L2 = L1). All factors are
            float32, or float64 for a float64 stack.
        out_map, in_map: U (o2, o1) and V (i2, i1) as matrices or as maps, or a sequence of them (a tensor of
            three dimensions), one per source layer (applied before the blend) or one per target layer (after
            it).
        out: (L2, o2, i2) to write into; then nothing is differentiable. Any floating dtype.
        order: "auto", "width_first" or "depth_first"; the result differs only in rounding when the maps
            are shared, and says which layers the maps belong to when they are not.
        precision: of the kernels' products, see `GrowthOperator`.

    Returns:
        (L2, o2, i2) in the dtype of `stack`, or `out`.

    Raises:
        GrowthError: when shapes, dtypes or devices do not fit, naming the axis and the sizes, for a stack
            without layers or a selection of unit -1, or when `out` shares memory with itself, with `stack` or
            with a factor. Nothing was written. And in a backward pass with create_graph=True.
    """
    if stack.dim() != 3 or not stack.is_floating_point():
        raise GrowthError(
            f"stack must be (layers, out, in) and floating, not {tuple(stack.shape)} {stack.dtype}"
        )
    d = Identity(stack.shape[0]) if depth is None else _as_map("layer", depth)
    out_map, in_map = _as_maps("out", out_map), _as_maps("in", in_map)
    lists = [[m] if isinstance(m, Map) else list(m) for m in (out_map, in_map)]
    checks = [("layer", d, 0), *(("out", m, 1) for m in lists[0]), *(("in", m, 2) for m in lists[1])]
    for axis, m, dim in checks:
        if m.shape[1] != stack.shape[dim]:
            raise GrowthError(
                f"axis {axis}: the map takes {m.shape[1]} units, the stack has {stack.shape[dim]}"
            )
        if m.least < 0:
            raise GrowthError(f"axis {axis}: there is no unit {m.least} to take")
        want = _compute_dtype(stack.dtype)
        if odd := [str(t.dtype) for t in m.factors().values() if t.dtype != want]:
            raise GrowthError(f"axis {axis}: the factors are {odd[0]}, a {stack.dtype} stack takes {want}")
        if away := [str(t.device) for t in m.factors().values() if t.device != stack.device]:
            raise GrowthError(f"axis {axis}: the factors are on {away[0]}, the stack on {stack.device}")
    if not (len(stack) and d.shape[0]):
        raise GrowthError(f"axis layer: {len(stack)} layers cannot become {d.shape[0]}")
    heights = [sorted({m.shape[0] for m in maps}) for maps in lists]
    for axis, sizes in zip(("out", "in"), heights, strict=True):
        if len(sizes) != 1:
            raise GrowthError(f"axis {axis}: the maps give {sizes or 'no'} units, one number is needed")
    shape = (d.shape[0], heights[0][0], heights[1][0])
    precision = _settled_precision(precision, stack.dtype)
    given = _for_kernels(stack, d, out_map, in_map) if order == "auto" else None
    if out is not None:
        if tuple(out.shape) != shape:
            raise GrowthError(f"out is {tuple(out.shape)}, the grown stack is {shape}")
        if out.device != stack.device:
            raise GrowthError(f"out is on {out.device}, the stack on {stack.device}")
        read = [*stack, *(t if t.dim() > 1 else t[None] for _, m, _ in checks for t in m.factors().values())]
        if why := overlap([*((t, False) for t in read), *((layer, True) for layer in out)]):
            raise GrowthError(f"out shares memory with itself, the stack or a factor: {why}")
        with torch.no_grad(), no_autocast(stack.device):
            if given is not None and _for_kernels_to_write(out):
                words, factors = given
                library.write(stack, out, factors[0], words, factors[1:], precision)
                torch.autograd.graph.increment_version(out)
            else:
                grow_(list(out), list(stack), d, out_map, in_map, order, _compute_dtype(stack.dtype))
        return out
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return _traced(stack, d, out_map, in_map, order)
    if given is not None:
        (u, v), (depth_matrix, us, vs) = given
        return library.grow(stack, depth_matrix, us, vs, u, v, precision)  # type: ignore[no-any-return]
    if torch.compiler.is_compiling():
        with no_autocast(stack.device):
            return _traced(stack, d, out_map, in_map, order)
    maps = [d, *lists[0], *lists[1]]
    tensors = [t for m in maps for t in m.factors().values()]
    return _Grow.apply(d, out_map, in_map, order, stack, *tensors)  # type: ignore[no-any-return, no-untyped-call]


def _as_maps(axis: str, given: Maps | Tensor | Sequence[Tensor]) -> Maps:
    if isinstance(given, Map):
        return given
    several = given.dim() == 3 if isinstance(given, Tensor) else isinstance(given, Sequence)
    return [_as_map(axis, m) for m in given] if several else _as_map(axis, given)


def _as_map(axis: str, given: Any) -> Map:
    if isinstance(given, Map):
        return given
    if not isinstance(given, Tensor) or given.dim() != 2:
        what = f"of shape {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise GrowthError(f"axis {axis}: a matrix or a map is needed, not one {what}")
    return Dense(given)


def _for_kernels(
    stack: Tensor, depth: Map, out_map: Maps, in_map: Maps
) -> tuple[tuple[str, str], tuple[Tensor, list[Tensor], list[Tensor]]] | None:
    """The words and tensors of `library.grow`; None where torch does the work."""
    if not isinstance(depth, Dense) or not isinstance(out_map, Map) or not isinstance(in_map, Map):
        return None
    if stack.dtype == torch.float64 or _without_kernels(stack.device.type):
        return None
    rows, cols = library.encode(out_map), library.encode(in_map)
    if rows is None or cols is None or not all(t.is_contiguous() for t in (stack, *rows[1], *cols[1])):
        return None
    return (rows[0], cols[0]), (depth.M, rows[1], cols[1])


def _for_kernels_to_write(out: Tensor) -> bool:
    """Whether neighbours along rows or columns are neighbours in memory; elsewhere torch writes."""
    runs = any(out.stride(dim) == 1 and out.shape[dim] > 1 for dim in (1, 2))
    return runs and out.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _constant_when_traced(fn: F) -> F:
    """What torch.compiler.assume_constant_result does, without its import of the compiler (two seconds)."""
    fn._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return fn


# For a compiled graph the environment and torch's settings are what they were when it was traced.
@_constant_when_traced
def _settled_precision(precision: str, dtype: torch.dtype) -> str:
    return resolve_precision(precision, dtype)


@_constant_when_traced
def _without_kernels(device_type: str) -> str:
    return why_not_triton(torch.device(device_type))


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _traced(stack: Tensor, depth: Map, out_map: Maps, in_map: Maps, order: str) -> Tensor:
    """The same in plain products, for the compiler: no in-place writes, autograd as usual."""
    w = stack.to(_compute_dtype(stack.dtype))

    def blend(x: Tensor) -> Tensor:
        return depth.left(x.flatten(1)).view(depth.shape[0], *x.shape[1:])

    width_first = is_width_first(depth, out_map, in_map, order)
    w = w if width_first else blend(w)
    us, vs = per_layer(out_map, len(w)), per_layer(in_map, len(w))
    wide = [v.left(u.left(x).t()).t() for u, v, x in zip(us, vs, w, strict=True)]
    y = torch.stack(wide)
    return (blend(y) if width_first else y).to(stack.dtype)


class _Grow(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, depth: Map, rows: Maps, cols: Maps, order: str, stack: Tensor, *tensors: Tensor
    ) -> Tensor:
        lists = [[m] if isinstance(m, Map) else list(m) for m in (rows, cols)]
        out = stack.new_empty(depth.shape[0], lists[0][0].shape[0], lists[1][0].shape[0])
        with no_autocast(stack.device):
            grow_(list(out), list(stack), depth, rows, cols, order, _compute_dtype(stack.dtype))
        ctx.save_for_backward(stack, *tensors)
        ctx.maps, ctx.order = (depth, rows, cols), order
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        library.check_once()
        stack, *_ = ctx.saved_tensors
        dtype = _compute_dtype(stack.dtype)
        needs = ctx.needs_input_grad
        if needs[4] and not any(needs[5:]) and dtype != torch.float64 and not why_not_select(grad.device):
            pulled = pull_stack(grad, *ctx.maps)
            if pulled is not None:
                return *[None] * 4, pulled.to(stack.dtype), *[None] * len(needs[5:])
        grads: list[Tensor] = []

        def zeros_like(m: Map) -> Map:
            own = {name: torch.zeros_like(t) for name, t in m.factors().items()}
            grads.extend(own.values())
            return m.replace(own)

        depth, rows, cols = ctx.maps
        d_depth = zeros_like(depth)
        d_rows, d_cols = (
            zeros_like(m) if isinstance(m, Map) else [zeros_like(each) for each in m] for m in (rows, cols)
        )
        d_stack = torch.zeros_like(stack, dtype=dtype) if ctx.needs_input_grad[4] else None
        sources = None if d_stack is None else list(d_stack)
        with no_autocast(stack.device):
            pullback_(
                list(grad), list(stack), depth, rows, cols, d_depth, d_rows, d_cols, ctx.order, dtype, sources
            )
        return None, None, None, None, None if d_stack is None else d_stack.to(stack.dtype), *grads
