"""torch.ops.ligo_fast: the kernels as registered torch ops, for eager mode, autograd and torch.compile.

An op takes tensors, so a map is given as its factors and a word for its structure: "identity 8", "dense",
"prefix" (C), "prefix diag" (C, diag), and "prefix x 64" for whole heads of 64 units.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import GrowthError
from ..kernels import graphs
from ..maps import Dense, Identity, Kron, Map, PrefixDiagonal
from ..models.modes import no_inference

if TYPE_CHECKING:
    from .backend_triton import Plan, Pool

# One for each family of a model and direction; those that were not used for longest go first.
MAX_PLANS, MAX_BYTES = 256, 1 << 28
_plans: dict[Any, Plan] = {}
_lock = threading.Lock()  # from looking a plan up to its launches: autograd has a thread for each device
# Graphs that torch.compile captures by itself leave the ops out: plans made in its trial run would lie in
# memory that the graph takes for its own.
_TAGS = [tag for tag in [getattr(torch.Tag, "cudagraph_unsafe", None)] if tag is not None]
_pools: dict[tuple[torch.device, int], Pool] = {}  # by device and stream


def encode(m: Map) -> tuple[str, list[Tensor]] | None:
    """A map as a word and its factors; None for a map that the kernels do not cover."""
    if isinstance(m, Identity):
        return f"identity {m.shape[0]}", []
    if isinstance(m, Dense):
        return "dense", [m.M]
    if isinstance(m, PrefixDiagonal):
        return ("prefix", [m.C]) if m.diag is None else ("prefix diag", [m.C, m.diag])
    if isinstance(m, Kron) and isinstance(m.B, Identity) and not isinstance(m.A, Identity):
        inner = encode(m.A)
        return None if inner is None else (f"{inner[0]} x {m.B.shape[0]}", inner[1])
    return None


def decode(word: str, factors: Sequence[Tensor]) -> Map:
    """The map that `encode` was given."""
    kind, *groups = word.split(" x ")
    m: Map
    if kind.startswith("identity"):
        m = Identity(int(kind.split()[1]))
    elif kind == "dense":
        m = Dense(factors[0])
    else:
        m = PrefixDiagonal(factors[0], factors[1] if kind == "prefix diag" else None)
    for size in groups:
        m = Kron(m, Identity(int(size)))
    return m


def plan_of(
    stack: Tensor,
    outs: Tensor,
    depth: Tensor,
    maps: tuple[str, str],
    factors: tuple[Sequence[Tensor], Sequence[Tensor]],
    precision: str,
    grad: bool = False,
    d_stack: Tensor | None = None,
) -> Plan:
    """The plan of one family, from the last time that everything but the addresses was the same.

    With `grad` it is bound for a pull-back of `outs`, the gradients of the grown layers. Its own tensors
    outlive the call, so do not make it in inference mode. A CUDA graph is captured with any stream's plan.
    """
    from .backend_triton import Job, Plan, Pool

    tensors = (stack, outs, depth, *factors[0], *factors[1])
    stream = torch.cuda.current_stream(stack.device).cuda_stream if stack.is_cuda else 0
    key = (
        *((t.shape, t.stride(), t.dtype, t.device) for t in tensors),
        *maps, precision, d_stack is None, stream,
    )  # fmt: skip
    if key not in _plans and stack.is_cuda:
        with torch.cuda.device(stack.device):
            if graphs.is_capturing(stack.device):
                key = next((k for k in _plans if k[:-1] == key[:-1]), key)
    if key in _plans:
        _plans[key] = _plans.pop(key)  # the last that was used
    else:
        # a plan tells tensors apart by what they are and keeps them: it gets others, later without memory
        learned = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
            for t in (depth, *factors[0], *factors[1])
        ]
        first = 1 + len(factors[0])
        d, u, v = Dense(learned[0]), decode(maps[0], learned[1:first]), decode(maps[1], learned[first:])
        # every layer is a view of one tensor, and has the address of its first element
        job = Job(d, u, v, list(stack), list(outs), [stack] * len(stack), [outs] * len(outs))
        d_sources = [list(d_stack)] if d_stack is not None else []
        while _plans and (len(_plans) >= MAX_PLANS or held() > MAX_BYTES):
            del _plans[next(iter(_plans))]
        pool = _pools.setdefault((stack.device, stream), Pool(stack.device))
        made = Plan([job], learned, precision, d_sources=d_sources, pool=pool)
        if made.rejected:  # never kept: the next call with this layout must be told too
            raise GrowthError(
                f"the kernels do not cover this: {made.rejected[0]}; LIGO_FAST_BACKEND=torch does"
            )
        for t in learned:
            t.untyped_storage().resize_(0)
        _plans[key] = made
    plan = _plans[key]
    plan.bind([stack], [depth, *factors[0], *factors[1]], [outs], [outs] if grad else None)
    return plan


def held() -> int:
    """Bytes of the tables of the plans that are kept; their workspaces are those of `_pools`."""
    return sum(plan.table_bytes for plan in _plans.values())


def write(
    stack: Tensor,
    out: Tensor,
    depth: Tensor,
    maps: tuple[str, str],
    factors: tuple[Sequence[Tensor], Sequence[Tensor]],
    precision: str,
) -> None:
    """Write the grown stack into `out`, through any strides."""
    with no_inference(), _lock:
        plan_of(stack, out, depth, maps, factors, precision).apply()


@torch.library.custom_op("ligo_fast::grow", mutates_args=(), tags=_TAGS)
def grow(
    stack: Tensor,
    depth: Tensor,
    rows: Sequence[Tensor],
    cols: Sequence[Tensor],
    row_map: str,
    col_map: str,
    precision: str,
) -> Tensor:
    """Y[l] = U (sum_j D[l, j] W[j]) V^T by the kernels: stack (L1, o1, i1) -> (L2, o2, i2)."""
    out = _like_grown(stack, depth, rows, cols, row_map, col_map)
    write(stack, out, depth, (row_map, col_map), (rows, cols), precision)
    return out


@torch.library.custom_op("ligo_fast::grow_backward", mutates_args=(), tags=_TAGS)
def grow_backward(
    grad: Tensor,
    stack: Tensor,
    depth: Tensor,
    rows: Sequence[Tensor],
    cols: Sequence[Tensor],
    row_map: str,
    col_map: str,
    precision: str,
    wants_stack: bool,
) -> list[Tensor]:
    """From dL/dY: dL/d stack (empty unless wanted), dL/dD and the gradients of the factors."""
    grad = grad.contiguous()
    d_stack, *grads = _like_grads(stack, depth, rows, cols, wants_stack)
    for t in (d_stack, *grads):
        t.zero_()
    maps, factors, wanted = (row_map, col_map), (rows, cols), d_stack if wants_stack else None
    with no_inference(), _lock:
        plan = plan_of(stack, grad, depth, maps, factors, precision, grad=True, d_stack=wanted)
        plan.pullback(grads, list(d_stack) if wants_stack else [])
    return [d_stack, *grads]


def _like_grown(
    stack: Tensor, depth: Tensor, rows: Sequence[Tensor], cols: Sequence[Tensor], row_map: str, col_map: str
) -> Tensor:
    u, v = decode(row_map, rows), decode(col_map, cols)
    return stack.new_empty(depth.shape[0], u.shape[0], v.shape[0])


def _like_grads(
    stack: Tensor, depth: Tensor, rows: Sequence[Tensor], cols: Sequence[Tensor], wants_stack: bool
) -> list[Tensor]:
    d_stack = stack.new_empty(stack.shape if wants_stack else (0,), dtype=torch.float32)
    return [d_stack, *(t.new_empty(t.shape) for t in (depth, *rows, *cols))]


@grow.register_fake
def _(stack, depth, rows, cols, row_map, col_map, precision):  # type: ignore[no-untyped-def]
    return _like_grown(stack, depth, rows, cols, row_map, col_map)


@grow_backward.register_fake
def _(grad, stack, depth, rows, cols, row_map, col_map, precision, wants_stack):  # type: ignore[no-untyped-def]
    return _like_grads(stack, depth, rows, cols, wants_stack)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    stack, depth, rows, cols, *ctx.words = inputs
    ctx.counts = len(rows), len(cols)
    ctx.save_for_backward(stack, depth, *rows, *cols)


def check_once() -> None:
    """Raises GrowthError in a backward pass that is to be differentiated again."""
    if torch.is_grad_enabled():  # in a backward pass with create_graph=True alone
        raise GrowthError(
            "the gradients of ops.grow and op() have no derivatives of their own (create_graph=True); "
            "torch.func.grad, vjp and jvp of ops.grow have"
        )


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    check_once()
    stack, depth, *factors = ctx.saved_tensors
    rows, cols = factors[: ctx.counts[0]], factors[ctx.counts[0] :]
    wants = ctx.needs_input_grad[0]
    d_stack, d_depth, *grads = grow_backward(grad, stack, depth, rows, cols, *ctx.words, wants)
    d_rows, d_cols = grads[: len(rows)], grads[len(rows) :]
    return d_stack.to(stack.dtype) if wants else None, d_depth, d_rows, d_cols, None, None, None


grow.register_autograd(_backward, setup_context=_setup_context)
