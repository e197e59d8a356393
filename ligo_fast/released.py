"""Gradients of the large model that are pulled back to the factors inside backward, and freed at once."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import backend_torch
from .blend import Workspace
from .errors import GrowthError
from .execution import check_as_made, gradient_maps
from .maps import Map, Selection
from .operator import GrowthOperator
from .plan import Piece
from .views import Views

WHAT_INSTEAD = (
    "release_grads=True: the gradients of the large model were pulled back to the factors inside backward "
    "and freed; for clipping give GrowthOptimizer max_grad_norm= and turn the trainer's own off "
    "(max_grad_norm=0 in TrainingArguments)"
)


class Released(Tensor):
    """The `.grad` of a parameter whose gradient was consumed: a shape without memory.

    Whoever reads or changes it gets a GrowthError. Two things are answered: zeroing, and the norm, infinite,
    for trainers that ask for it to log it and clip to infinity.
    """

    owner: weakref.ref[GradientRelease]

    @staticmethod
    def of(p: Tensor, owner: weakref.ref[GradientRelease]) -> Released:
        """Stands for the gradient of `p`, which `owner` consumed."""
        made: Released = torch.Tensor._make_wrapper_subclass(
            Released, p.shape, strides=p.stride(), dtype=p.dtype, device=p.device
        )
        made.owner = owner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        aten, op = torch.ops.aten, func.overloadpacket
        if op is aten.detach:
            return args[0]
        if op is aten.zero_:
            if (owner := args[0].owner()) is not None:
                owner.zero()
            return args[0]
        if op is aten.linalg_vector_norm:
            return torch.full((), torch.inf, dtype=torch.float32, device=args[0].device)
        if op is aten._foreach_norm:
            return [torch.full((), torch.inf, dtype=torch.float32, device=t.device) for t in args[0]]
        # clipping to infinity: inf / inf
        if op in (aten.mul_, aten._foreach_mul_) and isinstance(args[1], Tensor) and bool(args[1].isnan()):
            return args[0]
        raise GrowthError(WHAT_INSTEAD)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Released({list(self.shape)}, {self.dtype})"


class _Part(NamedTuple):
    """Layer number `layer` of a piece; where D only selects, the source layer it takes, times `scale`."""

    piece: Piece
    layer: int
    source: int | None
    scale: Tensor | None


def _parts(piece: Piece) -> Iterator[_Part]:
    depth = piece.depth
    if not isinstance(depth, Selection) or isinstance(depth.scale, nn.Parameter):
        yield from (_Part(piece, layer, None, None) for layer in range(len(piece.large)))
        return
    for layer, source in enumerate(depth.index.tolist()):
        yield _Part(piece, layer, source, None if depth.scale is None else depth.scale[layer])


class GradientRelease:
    """Hooks on the large model's parameters that pull every gradient back as soon as it is there.

    Layer by layer and depth first (`backend_torch.pullback_layer_`), in torch on every device: beside one
    gradient it takes a few matrices of the small model's size and a block of rows. Gradients of the factors
    add up over backward passes until they are zeroed: by `zero`, or by zeroing those of the large model.
    """

    def __init__(self, op: GrowthOperator) -> None:
        self.op, self.workspace = op, Workspace()
        self.views = Views(op.small, op.large)
        self._names = {id(p): n for n, p in op.large.named_parameters()}
        self._parts: dict[int, list[_Part]] = {}
        for piece in op.pieces:
            for part in _parts(piece):
                self._parts.setdefault(id(self.views.large[piece.large[part.layer]]), []).append(part)
        self._consumed: dict[int, nn.Parameter] = {}  # since the last zeroing
        self._handles = []
        me = weakref.ref(self)  # the model must not keep an optimizer that nobody uses any more
        for p in op.large.parameters():
            if p.requires_grad:
                mark = Released.of(p, me)
                self._handles.append(p.register_hook(_before(me, p)))
                self._handles.append(p.register_post_accumulate_grad_hook(_after(me, mark)))

    def close(self) -> None:
        """Remove the hooks: from now on gradients of the large model stay where they are."""
        self.zero()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def zero(self) -> None:
        """Forget all gradients: those of the factors, and the marks on the large model's parameters."""
        for factor in self.op.parameters():
            factor.grad = None
        for p in self._consumed.values():
            if isinstance(p.grad, Released):
                p.grad = None
        self._consumed.clear()

    def finish(self) -> None:
        """Check that every gradient was consumed, before a step.

        Raises:
            GrowthError: when there was none, or a parameter has one that no hook has seen.
        """
        self._notice_zeroing()
        for name, p in self.op.large.named_parameters():
            if p.grad is not None and not isinstance(p.grad, Released):
                raise GrowthError(
                    f"parameter {name} kept its gradient: it was replaced, unfrozen or given one after "
                    "GrowthOptimizer(release_grads=True) was made; make it after everything that does that"
                )
        if not self._consumed:
            raise GrowthError(
                "no parameter of the large model had a gradient: call loss.backward() first, on the very "
                "model that the operator was made for, not a copy"
            )

    def before(self, p: nn.Parameter) -> None:
        """A gradient of `p` is about to be accumulated."""
        first = next(iter(self._consumed.values()), p)  # one is enough to look at for each
        if first.grad is None or (p.grad is None and id(p) in self._consumed):
            self._notice_zeroing()
        if isinstance(p.grad, Released):
            p.grad = None

    @torch.no_grad()
    def after(self, p: nn.Parameter, mark: Released) -> None:
        """Consume the gradient of `p`."""
        assert p.grad is not None
        op = self.op
        for factor in op.parameters():
            if factor.grad is None:
                factor.grad = torch.zeros_like(factor)
        with _matmul_precision(op):
            for part in self._parts.get(id(p), []):
                self._pull_back(p, part)
        p.grad = mark
        self._consumed[id(p)] = p

    def _pull_back(self, p: nn.Parameter, part: _Part) -> None:
        piece, layer, op = part.piece, part.layer, self.op
        check_as_made(op, piece, self._names[id(p)], p)
        assert p.grad is not None
        g, sources = piece.large_slot.of(p.grad), self.views.sources(piece)
        if piece.depth is None or piece.order == "width_first":  # outside the layers; maps per source layer
            grads = [g if n == layer else None for n in range(len(piece.large))]
            backend_torch.pullback_(
                grads, sources, piece.depth, piece.rows, piece.cols, gradient_maps(piece.depth),
                gradient_maps(piece.rows), gradient_maps(piece.cols), piece.order, op.dtype,
                workspace=self.workspace,
            )  # fmt: skip
            return
        u, v = (m if isinstance(m, Map) else m[layer] for m in (piece.rows, piece.cols))
        du, dv = gradient_maps(u), gradient_maps(v)
        if part.source is None:
            backend_torch.pullback_layer_(
                g, layer, sources, piece.depth, u, v, gradient_maps(piece.depth), du, dv, op.dtype,
                workspace=self.workspace,
            )  # fmt: skip
        elif du is not None or dv is not None:
            source = sources[part.source]
            x = source if part.scale is None else source.to(op.dtype) * part.scale
            backend_torch.pullback_(
                [g], [x], None, u, v, None, du, dv, "auto", op.dtype, workspace=self.workspace
            )

    def _notice_zeroing(self) -> None:
        """Whether the large model's gradients were zeroed (set to None) since they were consumed."""
        gone = [p for p in self._consumed.values() if p.grad is None]
        if not gone:
            return
        if len(gone) < len(self._consumed):
            raise GrowthError(
                f"the gradient of {self._names[id(gone[0])]} was cleared, those of others were not: "
                "release_grads=True has added them all up in the factors; clear them together (zero_grad)"
            )
        self.zero()


def _before(release: weakref.ref[GradientRelease], p: nn.Parameter) -> Callable[[Tensor], None]:
    owner = weakref.ref(p)

    def hook(grad: Tensor) -> None:
        alive, parameter = release(), owner()
        if alive is not None and parameter is not None:
            alive.before(parameter)

    return hook


def _after(release: weakref.ref[GradientRelease], mark: Released) -> Callable[[Tensor], None]:
    def hook(p: Tensor) -> None:
        alive = release()
        if alive is not None:
            assert isinstance(p, nn.Parameter)
            alive.after(p, mark)

    return hook


@contextlib.contextmanager
def _matmul_precision(op: GrowthOperator) -> Iterator[None]:
    """Products on a GPU in the operator's precision; torch has no finer switch than the process's."""
    if op.device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision({"ieee": "highest", "tf32": "high"}.get(op.precision, "medium"))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
