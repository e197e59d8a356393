"""From tables and maps to pieces of work: one piece is one block of one parameter over all its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .axes import Axis, AxisMaps, Family, PerLayer
from .compute.blend import left_inverse
from .compute.order import Maps, each, first, is_width_first, rows_first
from .errors import GrowthError
from .maps import Identity, Map, PrefixDiagonal, Selection, is_learned
from .methods import Method
from .models.tables import Rows, Term
from .processes.dtensors import local

Grown = AxisMaps | PerLayer


@dataclass(frozen=True)
class Slot:
    """A block of a 2-D view of a parameter: how to see `q` inside a fused `q|k|v`.

    Attributes:
        split: how many leading dimensions become rows (the rest become columns).
        dim, start, stop: the block; dim None is the whole.
    """

    split: int
    dim: int | None = None
    start: int = 0
    stop: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """The (rows, columns) view; never a copy."""
        rows = 1
        for n in tensor.shape[: self.split]:
            rows *= n
        flat = tensor.view(rows, -1) if tensor.dim() != 2 or self.split != 1 else tensor
        return flat if self.dim is None else flat.narrow(self.dim, self.start, self.stop - self.start)

    def check(self, name: str, tensor: Tensor) -> None:
        """Raises GrowthError for a parameter whose strides allow no such view (channels_last, say)."""
        if tensor.dim() > 2:
            try:
                tensor.detach().view(tensor.shape[: self.split].numel(), tensor.shape[self.split :].numel())
            except RuntimeError:
                raise GrowthError(
                    f"parameter {name}, {list(tensor.shape)}, has strides {tensor.stride()} and so is no "
                    "matrix of rows and columns (channels_last?): make it contiguous"
                ) from None


@dataclass
class Piece:
    """outs[l] = U (sum_j D[l, j] sources[j]) V^T for one block of one family.

    Attributes:
        name: the family's pattern, with [block] for a part of it.
        small, large: parameter names by layer, a small one maybe twice; `small_slot`, `large_slot` say which
            block of each.
        depth: D, or None for a parameter outside the layers.
        rows, cols: U and V with their roles resolved; lists when they differ per layer.
        order: "width_first", "depth_first", or "auto" for shared maps.
        keep: rows and columns of new units stay as the target has them.
        noise_rows, noise_cols: (S, V) of an axis this block consumes; noise on it must vanish on S.
    """

    name: str
    small: list[str]
    large: list[str]
    small_slot: Slot
    large_slot: Slot
    depth: Map | None
    rows: Maps
    cols: Maps
    order: str = "auto"
    keep: bool = False
    noise_rows: tuple[Map, Map] | None = None
    noise_cols: tuple[Map, Map] | None = None
    large_shape: torch.Size | None = None

    def maps(self) -> Iterator[Map]:
        """Every map in use, in no particular order."""
        pairs = [*(self.noise_rows or ()), *(self.noise_cols or ())]
        for m in (self.depth, self.rows, self.cols, *pairs):
            yield from each(m)

    def flops(self, pullback: bool, grown: bool = False) -> int:
        """Multiplications and additions of one application, or of one pull-back to the learned factors.

        With `grown` the pull-back reads P and Z off the grown layers where D determines them.
        """
        l2, l1 = (1, 1) if self.depth is None else self.depth.shape
        u, v = first(self.rows), first(self.cols)
        width_first = is_width_first(self.depth, self.rows, self.cols, self.order)
        n = l1 if width_first else l2
        if not rows_first(n, u, v):
            u, v = v, u
        (o2, o1), (i2, i1) = u.shape, v.shape
        p, z, blend = u.flops(n * i1), v.flops(n * o2), 0  # the two products and the mixing of layers
        if self.depth is not None and not isinstance(self.depth, Selection):
            blend = self.depth.flops(o2 * i2 if width_first else o1 * i1)
        if not pullback:
            return p + z + blend
        learned = [_learned(m) for m in (self.depth, u, v)]
        if not width_first:  # Q, dX and from it dD; dU; P again and dV
            return p + z + 2 * blend + (p if learned[1] else 0) + (p + z if learned[2] else 0)
        total = blend + (blend if learned[0] else 0)  # D^T G; dD
        if grown and (self.depth is None or left_inverse(self.depth) is not None):
            if learned[0] or learned[2]:  # pinv(D), Z, and P where it is no part of Z
                read = v.kept == i1 or isinstance(v, PrefixDiagonal)  # P is a part of Z, but for a scale
                pinv = 0 if self.depth is None else 2 * l1 * l1 * l2
                total += pinv + blend + (p if learned[2] and not read else 0)
        else:
            total += z if learned[0] else 0  # Z for dD
            total += p if learned[0] or learned[2] else 0  # P again
        total += p + v.flops(n * (o2 - u.fixed)) if learned[1] else 0  # dU and Q for it
        return total + (z if learned[2] else 0)  # dV


def _learned(m: Map | None) -> bool:
    return m is not None and any(map(is_learned, m.factors().values()))


def check_strides(pieces: Iterable[Piece], small: Mapping[str, Any], large: Mapping[str, Any]) -> None:
    """Raises GrowthError for the first parameter of two models that its piece cannot see as a matrix.

    And for one of the large model whose values share memory with each other: they cannot be written.
    """
    for piece in pieces:
        for tensors, names, slot in (
            (small, piece.small, piece.small_slot),
            (large, piece.large, piece.large_slot),
        ):
            for name in names:
                slot.check(name, t := local(tensors[name]))
                if tensors is large and not t.is_contiguous():
                    _check_expanded(name, t)


def _check_expanded(name: str, t: Tensor) -> None:
    if 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True)) < t.numel():
        raise GrowthError(
            f"parameter {name} of the target, {list(t.shape)}, has strides {t.stride()}: values share memory "
            "(expand?) and cannot be written: make it contiguous"
        )


def check_as_made(piece: Piece, name: str, p: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Raises GrowthError for a large parameter that was resized, moved or cast since the piece was made."""
    if (p.shape, p.dtype, p.device) != (piece.large_shape, dtype, device):
        raise GrowthError(
            f"parameter {name} is now {list(p.shape)} {p.dtype} on {p.device}; the operator was "
            f"made for {list(piece.large_shape or [])} {dtype} on {device}"
        )


def make_pieces(
    families: Iterable[Rows],
    axes: dict[str, Axis],
    maps: dict[str, Grown],
    depth_of: Callable[[Family], Map],
    pair: tuple[Method, Method],
    shapes: Sequence[dict[str, torch.Size]],
    tied: bool,
) -> list[Piece]:
    """The pieces of a plan; `tied` says that the output head is the embedding.

    `shapes` are those of the small and of the large parameters by name.
    """
    pieces = []
    for family in families:
        split = _split(family, axes)
        fused = [d for d, terms in enumerate(family.dims) if len(terms) > 1]
        dim = fused[0] if fused else 0
        offsets = [0, 0]
        for block in family.dims[dim]:
            dims = [block if d == dim else terms[0] for d, terms in enumerate(family.dims)]
            name = f"{family.pattern}[{block.axis}]" if fused else family.pattern
            slots = [Slot(split), Slot(split)]
            if fused:
                sizes = (axes[block.axis].small, axes[block.axis].large)
                slots = [Slot(split, dim, o, o + n) for o, n in zip(offsets, sizes, strict=True)]
                offsets = [o + n for o, n in zip(offsets, sizes, strict=True)]
            sides = []  # rows, columns: the one growing term of each, with its size when nothing grows
            for lo, hi in ((0, split), (split, len(dims))):
                grown = [t for t in dims[lo:hi] if t.axis in axes]
                n = shapes[0][family.small[0]][lo:hi].numel()
                sides.append((grown[0] if grown else None, n))
            depth = None
            if family.layered:
                depth = depth_of(Family(name, len(family.small), len(family.large), family.writes))
            for piece in _pieces(name, family, slots, sides, maps, depth, pair, tied):
                piece.large_shape = shapes[1][family.large[0]]
                pieces.append(piece)
    return pieces


def _split(family: Rows, axes: dict[str, Axis]) -> int:
    """How many leading dimensions are rows, so that at most one growing axis is on either side."""
    grown = [d for d, terms in enumerate(family.dims) if terms[0].axis in axes]
    if len(family.dims) == 1 or not grown:
        return 1
    return len(family.dims) - 1 if grown[-1] == len(family.dims) - 1 else 1


def _pieces(
    name: str,
    family: Rows,
    slots: list[Slot],
    sides: list[tuple[Term | None, int]],
    maps: dict[str, Grown],
    depth: Map | None,
    pair: tuple[Method, Method],
    tied: bool,
) -> list[Piece]:
    resolved: list[Maps] = []
    noise: list[tuple[Map, Map] | None] = []
    levels = set()
    for term, n in sides:
        entry = None if term is None else maps[term.axis]
        if term is None or entry is None:
            resolved.append(Identity(n))
            noise.append(None)
        elif isinstance(entry, PerLayer):
            resolved.append([m.role(term.role, tied) for m in entry.maps])
            noise.append(None)
            levels.add(entry.level)
        else:
            resolved.append(entry.role(term.role, tied))
            consumed = term.role == "in" and not isinstance(entry.role("in"), Identity)
            noise.append((entry.role("shift"), entry.role("in")) if consumed else None)
    order = {"source": "width_first", "target": "depth_first"}.get(levels.pop(), "auto") if levels else "auto"
    large, keep = list(family.large), pair[0].fresh
    if isinstance(depth, Selection) and bool((depth.index < 0).any()):
        kept = (depth.index >= 0).nonzero().flatten()
        large = [large[i] for i in kept.tolist()]
        if order == "depth_first":
            resolved = [m if isinstance(m, Map) else [m[i] for i in kept.tolist()] for m in resolved]
        scale = None if depth.scale is None else depth.scale[kept]
        depth = Selection(depth.index[kept], depth.shape[1], scale)
    if not large or not pair[0].writes:
        return []
    piece = Piece(
        name, family.small, large, slots[0], slots[1], depth, resolved[0], resolved[1], order, keep,
        noise_rows=noise[0], noise_cols=noise[1],
    )  # fmt: skip
    if pair[0].next_layer and depth is not None:
        return _from_next_layer(piece, sides)
    return [piece]


def _from_next_layer(piece: Piece, sides: list[tuple[Term | None, int]]) -> list[Piece]:
    """Split off the new units a parameter produces: they come from the next source layer (AKI).

    As the paper has it: each source layer is widened beside the one above it, then D takes or mixes what
    that gives. So D stays, and the new units see every source layer's name one higher.
    """
    for dim, (term, _) in enumerate(sides):
        m = piece.rows if dim == 0 else piece.cols
        if term is None or term.role == "in" or not isinstance(m, Selection):
            continue
        n1 = m.shape[1]
        if not torch.equal(m.index[:n1].cpu(), torch.arange(n1)):
            raise GrowthError(f"parameter {piece.name}: aki needs the old units of {term.axis} in front")
        above = [*piece.small[1:], piece.small[-1]]
        slot = piece.large_slot
        if slot.dim not in (None, dim):
            raise GrowthError(f"parameter {piece.name}: fused along one axis, produced along another")
        parts = []
        for label, names, (a, b) in (("old", piece.small, (0, n1)), ("new", above, (n1, m.shape[0]))):
            part = Slot(slot.split, dim, slot.start + a, slot.start + b)
            rows, cols = (m.block(a, b), piece.cols) if dim == 0 else (piece.rows, m.block(a, b))
            parts.append(
                replace(
                    piece, name=f"{piece.name}:{label}", small=names, large_slot=part, rows=rows, cols=cols
                )
            )
        return parts
    return [piece]
