"""What a growth of files will do: everything about it but the bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..errors import GrowthError
from ..growing import DEFAULT, scale_eps
from ..methods import resolve, split_options
from ..methods.chosen import read_layers
from ..models.target import target_config
from ..operator import GrowthOperator
from .card import with_layer_types
from .device import read_device
from .folder import open_checkpoint, read_config
from .layout import Shard, make_shards, read_size
from .operators import Saved, make_operator, read_operator
from .skeleton import Source, as_namespace, check_fixed, large_skeleton, read_source
from .units import Unit, make_units

OUT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_SIZE = 5 * 10**9


@dataclass
class Plan:
    """Everything about a growth but the bytes.

    Attributes:
        source: the small checkpoint. op: the operator, of two models on the meta device.
        config: of the large model. units: of streaming. shards: to be written.
        companions: small files to be copied. notes: what a user should know.
    """

    source: Source
    op: GrowthOperator
    config: dict[str, Any]
    units: list[Unit]
    shards: list[Shard]
    companions: list[Path]
    dtype: torch.dtype
    device: torch.device
    operator_file: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Of all the files to be written."""
        return sum(s.size for s in self.shards) + sum(p.stat().st_size for p in self.companions)

    @property
    def parameters(self) -> tuple[int, int]:
        """Of the small and of the large model."""
        small, large = (sum(p.numel() for p in m.parameters()) for m in (self.op.small, self.op.large))
        return small, large


def plan_growth(
    small: str | Path,
    *,
    width: int | None = None,
    depth: int | None = None,
    method: str | None = None,
    target: str | Path | None = None,
    operator: str | Path | None = None,
    layers: str | None = None,
    dtype: str | None = None,
    shard_size: int | str = SHARD_SIZE,
    seed: int | None = None,
    noise: float | None = None,
    device: str = "cpu",
    **options: Any,
) -> Plan:
    """Read a checkpoint folder and plan its growth; see `grow_checkpoint`."""
    where, largest = read_device(device), read_size(shard_size)
    source = read_source(open_checkpoint(small))
    saved = None if operator is None else read_operator(operator)
    said = {"method": method, "layers": layers, "seed": seed, "noise": noise, **options}
    if saved is not None and (odd := [n for n, v in said.items() if v is not None]):
        raise GrowthError(f"{operator}: the operator says the method; leave out {', '.join(odd)}")
    seed, noise = seed or 0, noise or 0.0
    name = _method(method, layers)
    split_options(resolve(name), options)  # says which are unknown
    if layers is not None:
        depth = _depth_of(name, depth, target)
    config, values = _large_config(source, width, depth, target, saved, name, options, seed)
    large, _ = large_skeleton(source, values)
    if saved is None:
        op = GrowthOperator(source.skeleton, large, name, seed=seed, noise=noise, **options)
    else:
        op = make_operator(saved, source.skeleton, large)
    if target is None:
        config = with_layer_types(config, op, op.growth.axes["layer"].small)
    out_dtype = next(iter(source.weights.values())).dtype
    if dtype is not None:
        if dtype not in OUT_DTYPES:
            raise GrowthError(f"dtype {dtype!r} is none of {', '.join(OUT_DTYPES)}")
        out_dtype = OUT_DTYPES[dtype]
        config["torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"] = dtype
    shapes = {n: (out_dtype, tuple(p.shape)) for n, p in op.large.named_parameters()}
    notes = []
    if op.is_learned and saved is None:
        notes.append(
            f"method {op.growth.method!r} without an operator: its initial factors, nothing is learned"
        )
    dropped = [n for n in source.checkpoint.entries if n not in source.weights]
    if dropped:
        notes.append(f"{len(dropped)} tensors are no parameters and are left out: {dropped[0]} …")
    return Plan(
        source, op, config, make_units(op), make_shards(shapes, largest),
        source.checkpoint.companions(), out_dtype, where, None if operator is None else Path(operator), notes,
    )  # fmt: skip


def _method(method: str | None, layers: str | None) -> str:
    """The method's name: what is not said of it is the default's."""
    if layers is None:
        return method or DEFAULT
    if not isinstance(layers, str) or read_layers(layers) is None:
        raise GrowthError(f"layers {layers!r}: write source layers as 0-11,4-15")
    width = resolve(method or DEFAULT)[0].name
    if method not in (None, width):
        raise GrowthError(f"layers {layers!r} say the depth; method {method!r} must be a width method")
    return f"{width}+{layers}"


def _depth_of(name: str, depth: int | None, target: object) -> int | None:
    """How many layers were chosen; None where a target's config says it."""
    chosen = len(resolve(name)[1].layers or [])
    if depth not in (None, chosen):
        raise GrowthError(f"axis layer: {chosen} layers chosen, depth says {depth}")
    return None if target is not None else chosen


def _large_config(
    source: Source,
    width: int | None,
    depth: int | None,
    target: str | Path | None,
    saved: Saved | None,
    method: str,
    options: dict[str, Any],
    seed: int,
) -> tuple[dict[str, Any], SimpleNamespace]:
    """The large model's config.json and its values."""
    architecture, old = source.architecture, source.checkpoint.config
    if target is not None:
        if not isinstance(target, str | os.PathLike):
            raise GrowthError(
                f"target={type(target).__name__}: the path of a config.json is needed; lf.grow takes configs"
            )
        if width is not None or depth is not None:
            raise GrowthError(f"{target}: the target's config says the sizes; leave out width and depth")
        file = Path(target) / "config.json" if os.path.isdir(target) else Path(target)
        config = read_config(file)
        check_fixed(old, config, str(file))
        config = {**config, "architectures": old.get("architectures")}
        return config, as_namespace(config, architecture, str(file))
    if saved is not None and width is None and depth is None:
        if saved.architecture != architecture.name:
            raise GrowthError(
                f"{saved.file}: for {saved.architecture!r}, the source is {architecture.name!r}"
            )
        changed = {n: v for n, v in saved.config.items() if n in old or n in (architecture.eps,)}
        odd = {n: v for n, v in saved.config.items() if n not in changed}
        values = as_namespace({**old, **changed}, architecture, str(saved.file))
        for axis, size in architecture.sizes.items():  # what the config leaves to its default stays so
            if size.name in odd and size.read(values) != saved.large.get(axis):
                changed[size.name] = odd[size.name]
        config = {**old, **changed}
        return config, as_namespace(config, architecture, str(saved.file))
    if width is None and depth is None:
        raise GrowthError("say what to grow to: width, depth, layers, target or operator")
    new = target_config(architecture, source.skeleton, width, depth, {})
    if saved is None:
        new = scale_eps(new, architecture, source.skeleton, resolve(method)[0], options, seed)
    changed = {n: v for n, v in vars(new).items() if v is not None and old.get(n) != v}
    config = {**old, **changed}
    return config, as_namespace(config, architecture, "the target")
