"""The record of a growth: what was done to a model, without holding on to the model."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .architectures import Architecture
from .axes import Axis, PerLayer
from .maps import Map, Selection, is_learned
from .methods import Method
from .models.target import unwrap
from .plan import Grown
from .processes.dtensors import is_sharded


@dataclass
class Growth:
    """How a model was grown: axes, width maps by axis and depth maps by family; no reference to a model.

    `pair` are the width and the depth method.
    """

    pair: tuple[Method, Method]
    architecture: Architecture
    axes: dict[str, Axis]
    maps: dict[str, Grown] = field(default_factory=dict)
    depth: dict[str, Map] = field(default_factory=dict)
    tied: bool = False
    noise: float = 0.0
    dtype: torch.dtype = torch.float32

    @property
    def method(self) -> str:
        """The method's name, width+depth where the two differ."""
        return "+".join(dict.fromkeys(m.name for m in self.pair))

    def named_maps(self) -> Iterator[tuple[str, Map]]:
        """Every map by axis, layer and role, or by family."""
        for axis, grown in self.maps.items():
            yield from labelled(axis, grown)
        yield from self.depth.items()


def labelled(axis: str, grown: Grown) -> Iterator[tuple[str, Map]]:
    """The maps of an axis by axis, layer and role."""
    layers = grown.maps if isinstance(grown, PerLayer) else [grown]
    for n, maps in enumerate(layers):
        prefix = f"{axis}/{n}" if isinstance(grown, PerLayer) else axis
        for role, m in maps.named():
            yield f"{prefix}/{role}", m


def hash_maps(growth: Growth, learned: bool = True) -> str:
    """sha256 of the maps' tensors; of the fixed ones alone unless `learned`.

    Numbers count as float32: models that are float64 or float32 get the same maps up to that.
    """
    digest = hashlib.sha256()
    for name, m in sorted(growth.named_maps(), key=lambda pair: pair[0]):
        digest.update(f"{name} {m!r}".encode())
        for label, t in sorted(_tensors(m)):
            if learned or not is_learned(t):
                values = (t.detach().float() if t.is_floating_point() else t).cpu().contiguous()
                digest.update(label.encode() + values.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(m: Map, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Factors and indices, of the factors of a product, too."""
    for name, value in vars(m).items():
        if isinstance(value, Map):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value


Record = tuple[Growth, weakref.ref[nn.Module]]  # of the small model
_GROWN: weakref.WeakKeyDictionary[nn.Module, Record] = weakref.WeakKeyDictionary()


def growth_between(small: nn.Module, large: nn.Module) -> Growth | None:
    """How a model was last grown in this process, if that was from `small`; None where that is not known.

    A small model that is gone now may have been any of these sizes; a copy of one that is still there must
    have its weights.
    """
    growth, ref = _GROWN.get(unwrap(large), (None, None))
    if growth is None or ref is None:
        return None
    small, original = unwrap(small), ref()
    if original is small:
        return growth
    architecture = growth.architecture
    if not architecture.matches(small):
        return None
    if any(growth.axes[axis].small != size for axis, size in architecture.read_sizes(small).items()):
        return None
    return growth if original is None or _alike(original, small) else None


def _alike(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same weights, as far as they are here to be seen."""
    theirs = dict(b.named_parameters())
    return len(theirs) == sum(1 for _ in a.parameters()) and all(
        n in theirs and (p.is_meta or is_sharded(p) or torch.equal(p, theirs[n].to(p)))
        for n, p in a.named_parameters()
    )


def record(large: nn.Module, growth: Growth, small: nn.Module) -> None:
    """Remember how a model was grown and from which, for as long as it lives."""
    _GROWN[large] = growth, weakref.ref(small)


def depth_matrix(m: Map) -> Tensor:
    """D in float64; a row that leaves the layer as the target has it is zero."""
    if not isinstance(m, Selection):
        return m.dense()
    kept = (m.index >= 0)[:, None]
    return Selection(m.index.clamp(min=0), m.shape[1], m.scale).dense() * kept
