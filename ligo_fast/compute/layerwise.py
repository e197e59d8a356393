"""The pull-back of one parameter at a time, in torch on every device: what runs inside backward.

Depth first: X[l] = sum_j D[l, j] W[j] is mixed for the layer whose gradient is there, or read off the grown
weights while they hold what `apply_` wrote (`corner`). Beside one gradient it takes a few matrices
of a small layer's size and a block of rows.

A small model that lives elsewhere is not fetched where all of it can be read off: X as above and, for dD,

    <dX[l], W[j]> = sum_m pinv(D)[j, m] <dX[l], X[m]>
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import GrowthError
from ..maps import Map, Selection
from ..models.modes import no_autocast
from ..plan import Piece, check_as_made
from ..unchanged import Snapshot
from ..views import Views
from . import float32
from .backend_torch import pullback_
from .blend import CONDITION, Workspace, left_inverse, mix_layer, unmix_layer
from .corner import corner, has_corner, keeps_units
from .gradient_maps import gradient_maps, wants_gradient
from .order import each

if TYPE_CHECKING:
    from ..operator import GrowthOperator

# Reading a weight of fewer bits rounds what was mixed like an operand of products in these precisions.
READ_AS = {torch.bfloat16: ("bf16",), torch.float16: ("bf16", "tf32")}


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


class Layerwise:
    """Adds to the factors' gradients what one gradient of the large model contributes."""

    def __init__(self, op: GrowthOperator) -> None:
        self.op, self.workspace = op, Workspace()
        views = Views(op.small, op.large)
        self._small: dict[str, Tensor] = {**views.small}
        self._large: dict[str, Tensor] = {**views.large}
        self._names = {id(p): n for n, p in op.large.named_parameters()}
        self._parts: dict[int, list[_Part]] = {}
        for piece in op.pieces:
            for part in _parts(piece):
                self._parts.setdefault(id(self._large[piece.large[part.layer]]), []).append(part)
        self._written, self._known = Snapshot(), dict[int, bool]()  # of pieces, since that was written
        self._inverses = dict[int, Tensor | None]()

    def name(self, p: Tensor) -> str:
        """A parameter's name in the large model."""
        return self._names[id(p)]

    @torch.no_grad()
    def pull_back(self, p: nn.Parameter) -> None:
        """Add what the gradient of `p` contributes; the factors it concerns get a gradient if they have none.

        Raises:
            GrowthError: for a parameter that was resized, moved or cast since, or a sparse gradient.
        """
        op, grad = self.op, p.grad
        assert grad is not None
        if grad.layout != torch.strided:
            raise GrowthError(
                f"the gradient of parameter {self.name(p)} is {grad.layout}: dense ones are needed"
            )
        views = Views(self._small, self._large, op.fetch())
        with float32.using(op.precision, op.device), no_autocast(op.device):
            for part in self._parts.get(id(p), []):
                check_as_made(part.piece, self.name(p), p, op._large_dtype, op.device)
                part.piece.large_slot.check(self.name(p), p)
                if _is_by_source(part.piece):
                    self._pull_back_whole(part, part.piece.large_slot.of(grad), views)
                else:
                    self._pull_back(part, part.piece.large_slot.of(grad), views)

    def _pull_back_whole(self, part: _Part, g: Tensor, views: Views) -> None:
        """Width first, for maps per source layer."""
        piece = part.piece
        _prepare([m for m in (piece.depth, *each(piece.rows), *each(piece.cols)) if m is not None])
        grads = [g if n == part.layer else None for n in range(len(piece.large))]
        pullback_(
            grads, views.sources(piece), piece.depth, piece.rows, piece.cols, gradient_maps(piece.depth),
            gradient_maps(piece.rows), gradient_maps(piece.cols), piece.order, self.op.dtype,
            workspace=self.workspace,
        )  # fmt: skip

    def _pull_back(self, part: _Part, g: Tensor, views: Views) -> None:
        piece, layer, dtype = part.piece, part.layer, self.op.dtype
        u, v = _maps(piece, layer)
        depth = None if part.source is not None else piece.depth
        _prepare([m for m in (u, v, depth) if m is not None])
        du, dv, d_depth = gradient_maps(u), gradient_maps(v), gradient_maps(depth)
        if du is None and dv is None and d_depth is None:
            return
        y = piece.large_slot.of(views.large[piece.large[layer]].detach()) if self._is_fresh(piece) else None
        if y is not None and self._is_readable(piece):
            x = corner(y, u, v)
        elif depth is not None:
            x = mix_layer(views.sources(piece), depth, layer, dtype)
        else:
            x = views.sources(piece)[part.source or 0]
            x = x if part.scale is None else x.to(dtype) * part.scale
        dx = None if d_depth is None else torch.zeros(x.shape, dtype=dtype, device=x.device)
        pullback_(
            [g], [x], None, u, v, None, du, dv, "auto", dtype, None if dx is None else [dx],
            grown=None if y is None or y.dtype != dtype else [y], workspace=self.workspace,
        )  # fmt: skip
        del x
        if dx is None or depth is None:
            return
        inverse = self._inverse(piece) if self.op.streams and y is not None else None
        layers = views.sources(piece) if inverse is None else self._corners(piece, views)
        unmix_layer(dx, layers, depth, layer, d_depth, None, inverse)

    # what can be read off the grown weights

    def _is_fresh(self, piece: Piece) -> bool:
        """Whether the grown weights are what `apply_` wrote, and as good as what they would save."""
        op, written = self.op, self.op._execution.written
        if piece.keep or op.holder is not None:
            return False
        if op._large_dtype != op.dtype and not (
            op.streams and op.precision in READ_AS.get(op._large_dtype, ())
        ):
            return False
        if written is not self._written:
            self._written = written
            self._known.clear()
            self._inverses.clear()
        tensors = [self._large[n] for n in piece.large] + [self._small[n] for n in piece.small]
        return written.includes([*tensors, *(t for m in piece.maps() for t in m.factors().values())])

    def _is_readable(self, piece: Piece) -> bool:
        """Whether X of its layers is there to be read: at no cost where the small model is here."""
        if id(piece) not in self._known:
            sides = [*each(piece.rows), *each(piece.cols)]
            self._known[id(piece)] = has_corner(sides) if self.op.streams else keeps_units(sides)
        return self._known[id(piece)]

    def _inverse(self, piece: Piece) -> Tensor | None:
        """pinv(D) (L1, L2) where W follows from X with it."""
        if id(piece) not in self._inverses:
            # a rounding error of bfloat16 has less room to grow
            limit = CONDITION if self.op._large_dtype == self.op.dtype else CONDITION / 4
            self._inverses[id(piece)] = left_inverse(piece.depth, limit) if self._known[id(piece)] else None
        return self._inverses[id(piece)]

    def _corners(self, piece: Piece, views: Views) -> Iterator[Tensor]:
        """X of every layer, one after the other."""
        for layer, y in enumerate(views.outs(piece)):
            yield corner(y, *_maps(piece, layer))


def _is_by_source(piece: Piece) -> bool:
    return piece.depth is not None and piece.order == "width_first"


def _maps(piece: Piece, layer: int) -> tuple[Map, Map]:
    """U and V of one large layer."""
    rows, cols = piece.rows, piece.cols
    return (rows if isinstance(rows, Map) else rows[layer], cols if isinstance(cols, Map) else cols[layer])


def _prepare(maps: Sequence[Map]) -> None:
    """Learned factors without a gradient get one: late, as the first gradients come where memory is short."""
    for m in maps:
        for t in m.factors().values():
            if wants_gradient(t) and t.grad is None:
                t.grad = torch.zeros_like(t)
