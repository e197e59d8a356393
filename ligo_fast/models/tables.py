"""A pair of models read against their table: axes with both sizes, families of parameters, every check."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..architectures import Architecture, architecture_of
from ..axes import Axis
from ..errors import GrowthError
from ..processes.dtensors import device_of, local, model_class


@dataclass(frozen=True)
class Term:
    """One axis in one role, as written in a table."""

    axis: str
    role: str


def parse(dims: str) -> list[list[Term]]:
    """`"embed:in, q|k|v"` -> one list of terms per dimension."""

    def term(text: str) -> Term:
        axis, _, role = text.strip().partition(":")
        return Term(axis, role or "out")

    return [[term(t) for t in dim.split("|")] for dim in dims.split(",")]


def read_axes(architecture: Architecture, small: nn.Module, large: nn.Module) -> dict[str, Axis]:
    """The axes of a pair of models, basic and composed.

    Raises:
        GrowthError: for an axis that shrinks, heads that do not divide, a head_dim that grows under RoPE.
    """
    sizes = [architecture.read_sizes(m) for m in (small, large)]
    for axis, n1 in sizes[0].items():
        if sizes[1][axis] < n1:
            raise GrowthError(f"axis {axis}: the target has {sizes[1][axis]}, less than the source's {n1}")
    for which, s in zip(("source", "target"), sizes, strict=True):
        if "kv_head" in s and s["head"] % s["kv_head"]:
            raise GrowthError(
                f"axis head: the {which}'s {s['head']} query heads do not divide over {s['kv_head']} "
                "key/value heads"
            )
    if architecture.rotary and sizes[0]["head_dim"] != sizes[1]["head_dim"]:
        raise GrowthError(
            f"axis head_dim: rotary positions pair fixed units of a head, it cannot grow from "
            f"{sizes[0]['head_dim']} to {sizes[1]['head_dim']}; grow the number of heads"
        )

    def basic(name: str) -> Axis:
        axis, _, tag = name.partition(".")
        norm = architecture.norm if axis == "embed" else None
        return Axis(axis, sizes[0][axis], sizes[1][axis], tag, norm=norm)

    axes = {name: basic(name) for name in architecture.sizes}
    for name, product in architecture.axes.items():
        factors = tuple(basic(f) for f in product.split("*"))
        n1 = n2 = 1
        for f in factors:
            n1, n2 = n1 * f.small, n2 * f.large
        axes[name] = Axis(name, n1, n2, factors=factors, rotary=architecture.rotary)
    return axes


@dataclass(frozen=True)
class Rows:
    """A family as found in both models: parameter names by layer and its dimensions."""

    pattern: str
    dims: list[list[Term]]
    small: list[str]
    large: list[str]
    layered: bool

    @property
    def writes(self) -> bool:
        """Whether it writes to the residual stream."""
        return writes(self.dims)


def read_families(
    architecture: Architecture, small: nn.Module, large: nn.Module, axes: dict[str, Axis]
) -> list[Rows]:
    """Match every parameter of both models with its row of the table and check every shape.

    Raises:
        GrowthError: for parameters that no row covers, that one model lacks, or whose shape is not what the
            table says, naming them.
    """
    found = [_match(architecture, m) for m in (small, large)]
    parameters = [dict(m.named_parameters()) for m in (small, large)]
    counts = (axes["layer"].small, axes["layer"].large)
    families = []
    for pattern in dict.fromkeys([*found[0], *found[1]]):
        dims = parse(architecture.parameters[pattern])
        names: list[list[str]] = []
        for side, which in enumerate(("source", "target")):
            layers: list[int | None] = [*range(counts[side])] if "*" in pattern else [None]
            have = found[side].get(pattern, {})
            if set(have) != set(layers):
                raise GrowthError(
                    f"parameter {pattern}: the {which} has it {len(have)} times, its sizes say {len(layers)}"
                )
            names.append([have[layer] for layer in layers])
            for name in names[side]:
                _check_shape(name, parameters[side][name], dims, axes, which)
        _check_fixed(pattern, dims, axes, parameters[0][names[0][0]], parameters[1][names[1][0]])
        families.append(Rows(pattern, dims, names[0], names[1], "*" in pattern))
    return families


def _match(architecture: Architecture, model: nn.Module) -> dict[str, dict[int | None, str]]:
    """pattern -> layer number -> parameter name."""
    found: dict[str, dict[int | None, str]] = {}
    names, missed = [n for n, _ in model.named_parameters()], []
    for name in names:
        if (row := architecture.lookup(name)) is None:
            missed.append(name)
        else:
            found.setdefault(row[0], {})[row[1]] = name
    if missed:
        raise GrowthError(
            f"architecture {architecture.name!r} covers no parameter named {', '.join(missed[:5])}"
            f"{' …' if len(missed) > 5 else ''} ({len(missed)} of {len(names)})"
        )
    return found


def _check_shape(name: str, p: Tensor, dims: list[list[Term]], axes: dict[str, Axis], which: str) -> None:
    if p.dim() != len(dims):
        raise GrowthError(f"parameter {name}: {p.dim()} dimensions in the {which}, {len(dims)} in the table")
    for d, terms in enumerate(dims):
        known = [axes[t.axis] for t in terms if t.axis in axes]
        want = sum(a.small if which == "source" else a.large for a in known)
        if known and p.shape[d] != want:
            label = "|".join(t.axis for t in terms)
            raise GrowthError(
                f"parameter {name}: dimension {d} ({label}) is {p.shape[d]} in the {which}, "
                f"its config says {want}"
            )


def _check_fixed(pattern: str, dims: list[list[Term]], axes: dict[str, Axis], s: Tensor, t: Tensor) -> None:
    for d, terms in enumerate(dims):
        if terms[0].axis not in axes and s.shape[d] != t.shape[d]:
            raise GrowthError(
                f"axis {terms[0].axis}: {s.shape[d]} in the source and {t.shape[d]} in the target "
                f"(parameter {pattern}), and no method grows it"
            )


def check_finite(named: Sequence[tuple[str, Tensor]], which: str = "source") -> None:
    """Raises GrowthError for a parameter with NaN or infinity, naming it and how many.

    And for one that torch cannot compute with: of float8, or sparse.
    """
    for name, p in named:
        p = local(p)
        if p.layout != torch.strided or p.dtype.itemsize < 2:
            kind = p.dtype if p.layout == torch.strided else p.layout
            raise GrowthError(f"parameter {name} of the {which} is {kind}: such weights cannot be grown")
        if p.is_meta:  # another process has it
            continue
        if bad := int((~torch.isfinite(p)).sum()):
            raise GrowthError(f"parameter {name} of the {which} has {bad} values that are NaN or infinite")


def check_apart(small: nn.Module, large: nn.Module, written: Collection[str]) -> None:
    """Raises GrowthError where writing a parameter of the large model would change the small one.

    Args:
        written: names of the large model's parameters that are.
    """
    sources: dict[int, list[tuple[int, int, str]]] = {}
    for name, p in small.named_parameters():
        sources.setdefault(local(p).untyped_storage()._cdata, []).append((*_span(p), name))
    for name, p in large.named_parameters():
        first, last = _span(p)
        for a, b, source in sources.get(local(p).untyped_storage()._cdata, []):
            if name in written and a < last and first < b:
                raise GrowthError(
                    f"parameter {name} of the target is in the memory of the source's {source}, which "
                    "growing must not change: give the target a copy (copy.deepcopy)"
                )


def _span(p: Tensor) -> tuple[int, int]:
    """Where a tensor begins and ends in its storage, in elements."""
    p = local(p)
    start, reach = int(p.storage_offset()), sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True))
    return start, start + (reach + 1 if p.numel() else 0)


def common_architecture(small: nn.Module, large: nn.Module) -> Architecture:
    architecture = architecture_of(small)
    if architecture_of(large) is not architecture or model_class(large) is not model_class(small):
        source, target = (model_class(m).__name__ for m in (small, large))
        raise GrowthError(f"the source is a {source}, the target a {target}")
    return architecture


def common_device_and_dtype(
    small: nn.Module, large: nn.Module, alone: bool = True, stored: bool = False
) -> tuple[torch.device, torch.dtype]:
    """Where the large model and the factors live, and their dtype; the CPU for two models on the meta device.

    Unless `alone`, other processes may have the source's weights; `stored`: files have them.
    """
    for which, model in (("source", small), ("target", large)):
        for kind in ("device", "dtype"):
            seen = {str(getattr(p, kind)) for p in model.parameters()}
            if len(seen) > 1:
                raise GrowthError(f"the {which} mixes {kind}s {', '.join(sorted(seen))}")
    s, t = next(small.parameters()), next(large.parameters())
    device = device_of(large)
    if device.type == "meta":  # it gets memory where the source is
        device = torch.device("cpu") if s.is_meta and (alone or stored) else s.device
    elif s.is_meta and alone and not stored:
        device = s.device
    if device.type == "meta":
        raise GrowthError("the source is on the meta device: it has no weights to grow")
    if not s.is_meta and s.device not in (device, torch.device("cpu")):
        raise GrowthError(f"the source is on {s.device}, the target on {device}: move one first")
    if s.dtype != t.dtype:
        raise GrowthError(f"the source is {s.dtype}, the target {t.dtype}: cast one first")
    if not s.dtype.is_floating_point:
        raise GrowthError(f"parameters are {s.dtype}, not floating point")
    return device, torch.float64 if s.dtype == torch.float64 else torch.float32


def is_tied(architecture: Architecture, model: nn.Module) -> bool:
    """Whether an output head shares its weight with a parameter that produces the residual stream."""
    rows: dict[int, dict[str, str]] = {}  # of each parameter; layers that are one module are of one row
    for name, p in model.named_parameters(remove_duplicate=False):
        row = architecture.lookup(name)
        rows.setdefault(id(p), {})[name if row is None else row[0]] = "" if row is None else row[2]
    shared = [dims for found in rows.values() if len(found) > 1 for dims in found.values()]
    return any(writes(parse(dims)) for dims in shared if dims)


def common_tie(architecture: Architecture, small: nn.Module, large: nn.Module) -> bool:
    """Whether both models' output heads are their embeddings; raises GrowthError where only one's is."""
    source, target = (is_tied(architecture, m) for m in (small, large))
    if source != target:
        which = "source" if source else "target"
        raise GrowthError(
            f"only the {which}'s output head is tied to its embedding (vocab, embed): tie_word_embeddings="
            f"{source} in the target's config makes both alike"
        )
    return source


def writes(dims: list[list[Term]]) -> bool:
    """Whether a parameter of these dimensions writes to the residual stream."""
    return any(t.axis == "embed" and t.role == "out" for dim in dims for t in dim)
