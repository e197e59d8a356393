"""What a growth method sees and answers: axes and families in, maps per role out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import torch

from .errors import GrowthError
from .maps import Identity, Map, Selection, as_selection, kron, row_scale


@dataclass(frozen=True)
class Axis:
    """A named axis of a pair of models.

    Attributes:
        name: as in the architecture's table; `tag` marks a copy of it (`head.q`: name head, tag q).
        small, large: its sizes in the two models.
        factors: the axes it is a product of, slowest first; empty for a basic axis.
        norm: "layer" or "rms" on the residual stream, None on every other axis.
        rotary: a product that carries rotary positions, whose pairs must stay inside a head.
    """

    name: str
    small: int
    large: int
    tag: str = ""
    factors: tuple[Axis, ...] = ()
    norm: str | None = None
    rotary: bool = False

    @property
    def grows(self) -> bool:
        return self.small != self.large


@dataclass(frozen=True)
class Family:
    """One parameter over all layers: its name with * for the layer, and the layer counts.

    `writes` says that it writes to the residual stream: zero it, and its sub-layer adds nothing.
    """

    name: str
    small: int
    large: int
    writes: bool


@dataclass
class Context:
    """What a method may need beside the axis: seeded randomness, layer counts, and memory of maps made."""

    seed: int
    layers: tuple[int, int]
    cache: dict[tuple[str, ...], Map] = field(default_factory=dict)
    maps: dict[str, AxisMaps] = field(default_factory=dict)

    def rng(self, key: str) -> torch.Generator:
        """A generator that depends on the seed and the key only, not on the order of calls."""
        return torch.Generator().manual_seed(self.seed_of(key))

    def seed_of(self, key: str) -> int:
        """The seed of that generator."""
        return zlib.crc32(f"{self.seed}/{key}".encode())


@dataclass
class AxisMaps:
    """The maps of one axis, by role (see `architectures`). What is left out follows from the rest.

    Attributes:
        out: U, applied where a parameter produces the axis.
        into: V, applied where a parameter consumes it; U if left out.
        gain, shift: applied to a norm's weight and bias; U if left out.
        final_gain, final_shift: the same for the norm before a head that is tied to the embedding. A tied
            head consumes with U instead of V, so the norm carries V / U; derived for selections.
        eps_scale: what the norm's epsilon must be multiplied with to keep the function exactly.
    """

    out: Map
    into: Map | None = None
    gain: Map | None = None
    shift: Map | None = None
    final_gain: Map | None = None
    final_shift: Map | None = None
    eps_scale: float = 1.0

    def role(self, role: str, tied: bool = False) -> Map:
        """The map for a role of the architecture's table; `tied` says that the head is."""
        if role == "in":
            return self.into or self.out
        base = {"gain": self.gain, "shift": self.shift}.get(role.rstrip("+")) or self.out
        if not (role.endswith("+") and tied):
            return base
        final = self.final_gain if role == "gain+" else self.final_shift
        return final or _times_ratio(base, self.out, self.into or self.out)

    def named(self) -> list[tuple[str, Map]]:
        """The maps that were given, by the name of their attribute."""
        names = ("out", "into", "gain", "shift", "final_gain", "final_shift")
        return [(name, m) for name in names if isinstance(m := getattr(self, name), Map)]


@dataclass
class PerLayer:
    """Maps of an axis that differ per layer: `level` is "source" or "target"."""

    level: str
    maps: list[AxisMaps]


def _times_ratio(base: Map, out: Map, into: Map) -> Map:
    """`base` with each row times V / U, for a U and V that select the same units."""
    if into is out:
        return base
    kinds = Identity | Selection
    if not (isinstance(base, kinds) and isinstance(out, kinds) and isinstance(into, kinds)):
        raise GrowthError("a tied head needs final_gain and final_shift from a method whose V differs from U")
    b, u, v = as_selection(base), as_selection(out), as_selection(into)
    like = next((m.scale for m in (v, u, b) if m.scale is not None), torch.ones(1, dtype=torch.float32))
    su, sv, sb = row_scale(u, like), row_scale(v, like), row_scale(b, like)
    ratio = torch.where(su != 0, sv / torch.where(su != 0, su, torch.ones_like(su)), torch.ones_like(su))
    return Selection(b.index, b.shape[1], sb * ratio)


def product(axis: Axis, parts: list[AxisMaps]) -> AxisMaps:
    """The maps of a composed axis from those of its factors."""
    parts = [_balanced(f, p) if f.tag == "score" else p for f, p in zip(axis.factors, parts, strict=True)]
    out, into = parts[0].out, parts[0].role("in")
    gain, shift = parts[0].role("gain"), parts[0].role("shift")
    for p in parts[1:]:
        out, into = kron(out, p.out), kron(into, p.role("in"))
        gain, shift = kron(gain, p.role("gain")), kron(shift, p.role("shift"))
    return AxisMaps(out, into, gain, shift)


def rescaled(maps: AxisMaps, factor: float) -> AxisMaps:
    """The same with U times `factor`, for fixed maps."""
    if factor == 1.0 or not isinstance(maps.out, Identity | Selection):
        return maps
    out = as_selection(maps.out)
    scale = row_scale(out, torch.ones(1, dtype=torch.float64)) * factor
    return replace(maps, out=Selection(out.index, out.shape[1], scale), into=maps.role("in"))


def _balanced(axis: Axis, maps: AxisMaps) -> AxisMaps:
    """Maps for q and k alike on a grown head_dim: U^T U = sqrt(large / small) I, what the root takes away."""
    if maps.into is None or not (isinstance(maps.out, Selection) and isinstance(maps.into, Selection)):
        return maps
    like = torch.ones(1, dtype=torch.float64)
    both = row_scale(maps.out, like) * row_scale(maps.into, like)
    scale = both.sqrt() * (axis.large / axis.small) ** 0.25
    shared = torch.where(scale != 0, both / torch.where(scale != 0, scale, 1.0), 0.0)  # of gradients
    out, into = (Selection(maps.out.index, axis.small, s) for s in (scale, shared))
    return AxisMaps(out, into)
