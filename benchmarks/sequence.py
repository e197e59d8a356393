"""The published operation sequence (`published.py`) for any model that an operator covers.

For every block of every parameter of every large layer, one by one: the small layers stacked along the last
dimension, multiplied and summed; a product and a cat for the in dimension; the same for the out dimension;
and, where blocks are parts of one parameter (q | k | v), a cat of the blocks. Autograd differentiates it.
Factors start as the operator's and keep their dtype; as under autocast, each is cast once a call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ligo_fast as lf
from benchmarks.published import Product, backward, learned_rows, widen
from ligo_fast.growth import depth_matrix
from ligo_fast.maps import Identity, Map
from ligo_fast.plan import Piece

Key = tuple[int, int]  # of a width factor: the operator's tensor, and how many units of a head share it


@dataclass
class Part:
    """A block of one family: its small layers, stacked last; `rows` and `columns` name width factors."""

    piece: Piece
    stacked: Tensor
    depth: Tensor | None  # (L2, L1)
    rows: Key | None
    columns: Key | None

    def block(self, tensor: Tensor) -> Tensor:
        """This part's block of a large parameter or of its gradient; a vector stays one."""
        view = self.piece.large_slot.of(tensor)
        return view[:, 0] if tensor.dim() == 1 else view


def grow_blocks(
    stacked: list[Tensor],
    coefficients: list[Tensor | None],
    rows: list[Tensor | None],
    columns: list[Tensor | None],
    product: Product = torch.matmul,
) -> list[Tensor]:
    """The blocks of one large layer; this is what torch.compile gets."""
    grown = []
    for weight, mix, out_rows, in_rows in zip(stacked, coefficients, rows, columns, strict=True):
        if mix is not None:
            weight = torch.sum(weight * mix, -1)
        grown.append(widen(weight, out_rows, in_rows, product))
    return grown


class Sequence:
    """The sequence over an operator's models; `forward` leaves the graph that `backward` consumes.

    Args:
        op: a LiGO operator with maps shared by all layers.
        dtype: of the arithmetic; factors are float32, or float64 with it.
    """

    def __init__(
        self,
        op: lf.GrowthOperator,
        dtype: torch.dtype,
        product: Product = torch.matmul,
        compiled: bool = False,
    ) -> None:
        self.dtype, self.product = dtype, product
        self.factor_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.blocks: Callable[..., list[Tensor]] = grow_blocks
        if compiled:
            self.blocks = torch.compile(grow_blocks, dynamic=False)
        self.width: dict[Key, Tensor] = {}
        self.mixes: dict[int, Tensor] = {}  # by the operator's D
        self.parts = [self._part(op, piece) for piece in op.pieces]
        self.grown: dict[str, Tensor] = {}

    def _part(self, op: lf.GrowthOperator, piece: Piece) -> Part:
        small = [op.small.get_parameter(name).detach() for name in piece.small]
        views = [piece.small_slot.of(p)[:, 0] if p.dim() == 1 else piece.small_slot.of(p) for p in small]
        assert isinstance(piece.rows, Map) and isinstance(piece.cols, Map), "one map for all layers"
        depth = None
        if piece.depth is not None:
            key = id(piece.depth)
            self.mixes.setdefault(key, _leaf(depth_matrix(piece.depth).to(op.device, self.factor_dtype)))
            depth = self.mixes[key]
        stacked = (views[0] if depth is None else torch.stack(views, -1)).to(self.dtype)
        return Part(piece, stacked, depth, self._width(piece.rows), self._width(piece.cols))

    def _width(self, m: Map) -> Key | None:
        """The learned rows of a map as a leaf; None for an axis that does not grow."""
        if isinstance(m, Identity):
            return None
        (factor,) = m.factors().values()
        key = id(factor), m.shape[1] // factor.shape[1]
        if key not in self.width:
            exact = m.replace({k: t.detach().to(self.factor_dtype) for k, t in m.factors().items()})
            eye = torch.eye(m.shape[1], dtype=self.factor_dtype, device=factor.device)
            self.width[key] = _leaf(learned_rows(exact.left(eye)))
        return key

    def cast(self) -> tuple[dict[Key | None, Tensor | None], dict[int, tuple[Tensor, ...]]]:
        """Width factors, and the rows of depth factors, in the dtype of the arithmetic."""
        width: dict[Key | None, Tensor | None] = {
            key: leaf.to(self.dtype) for key, leaf in self.width.items()
        }
        width[None] = None
        return width, {id(leaf): leaf.to(self.dtype).unbind(0) for leaf in self.mixes.values()}

    def layer(self, parts: list[Part], number: int, cast: Any = None) -> list[Tensor]:
        """The blocks of one large layer for some parts, with the factors that `cast` gave."""
        width, depth = cast or self.cast()
        mixes = [None if p.depth is None else depth[id(p.depth)][number] for p in parts]
        rows, columns = [width[p.rows] for p in parts], [width[p.columns] for p in parts]
        return self.blocks([p.stacked for p in parts], mixes, rows, columns, self.product)

    def forward(self) -> None:
        """The large parameters by name, in `grown`."""
        self.release()
        cast = self.cast()
        outer = [p for p in self.parts if p.depth is None]
        inner = [p for p in self.parts if p.depth is not None]
        blocks: dict[str, list[Tensor]] = defaultdict(list)
        for parts, layers in ((outer, 1), (inner, max((len(p.piece.large) for p in inner), default=0))):
            for number in range(layers):
                for part, block in zip(parts, self.layer(parts, number, cast), strict=True):
                    blocks[part.piece.large[number]].append(block)
        dims = {name: p.piece.large_slot.dim or 0 for p in self.parts for name in p.piece.large}
        self.grown = {n: b[0] if len(b) == 1 else torch.cat(b, dims[n]) for n, b in blocks.items()}

    def backward(self, grads: Mapping[str, Tensor]) -> None:
        """From gradients of the large parameters to the leaves' `.grad`."""
        backward(self.grown, grads)
        self.release()

    def release(self) -> None:
        self.grown = {}

    def gradients(self, op: lf.GrowthOperator) -> dict[str, dict[str, Tensor]]:
        """The gradients by kind and by the operator's names; heads add up what their units say."""
        names = {id(p): name for name, p in op.named_parameters()}
        found: dict[str, dict[str, Tensor]] = {"width": {}, "depth": {}}
        for (factor, group), leaf in self.width.items():
            new, old = (n // group for n in leaf.shape)
            units = _grad(leaf).view(new, group, old, group)
            grad = units.diagonal(dim1=1, dim2=3).sum(-1)
            name = names[factor]
            found["width"][name] = found["width"][name] + grad if name in found["width"] else grad
        for piece in op.pieces:
            m = piece.depth
            if m is not None and (name := names.get(id(m.factors().get("M")))):
                found["depth"][name] = _grad(self.mixes[id(m)])
        return found


def _leaf(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_()


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
