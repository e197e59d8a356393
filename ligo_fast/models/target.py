"""From "width=768, depth=12" to a model: the target's config, its construction, its meta tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ..architectures import Architecture
from ..arguments import check_size
from ..errors import GrowthError
from ..processes.dtensors import is_sharded
from .buffers import cast_as, cast_buffers
from .drawing import drawn
from .modes import no_modes


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of torch.compile, DistributedDataParallel and DataParallel.

    Raises:
        GrowthError: for what is no module.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    if not isinstance(model, nn.Module):
        raise GrowthError(
            f"a model (torch.nn.Module) is needed, not {type(model).__name__}; of large models lf.grow takes "
            "configs, too: target="
        )
    return model


def target_config(
    architecture: Architecture,
    small: nn.Module,
    width: int | None,
    depth: int | None,
    overrides: dict[str, Any],
) -> Any:
    """The source's config with another residual width and depth.

    Heads grow in number at a fixed head_dim, key/value heads and ffn in proportion, unless `overrides`, in
    the config's own names, say otherwise.

    Raises:
        GrowthError: when a size does not come out whole or is given twice, naming the axis and the numbers.
    """
    old, sizes = architecture.config(small), architecture.read_sizes(small)
    unknown = [name for name in overrides if not hasattr(old, name)]
    if unknown:
        raise GrowthError(f"{type(old).__name__} has no attribute {', '.join(unknown)}")
    overrides = _by_own_names(old, overrides)
    width = None if width is None else check_size("embed", width)
    depth = None if depth is None else check_size("layer", depth)
    wanted: dict[str, int] = {"layer": sizes["layer"] if depth is None else depth}
    names = {axis: size.name for axis, size in architecture.sizes.items()}
    for axis, keyword, size in (("embed", "width", width), ("layer", "depth", depth)):
        if size is not None and (name := names[axis]) is not None and name in overrides:
            raise GrowthError(f"axis {axis}: {keyword}={size} and {name}={overrides[name]!r}: give one")

    def scaled(axis: str, numerator: int, denominator: int) -> None:
        """axis' = axis * numerator / denominator, unless the config's own name was given."""
        if names.get(axis) is None or axis not in sizes or names[axis] in overrides:
            return
        value, rest = divmod(sizes[axis] * numerator, denominator)
        if rest:
            raise GrowthError(
                f"axis {axis}: {sizes[axis]} cannot grow by {numerator}/{denominator} to a whole number; "
                f"choose another width, or say {names[axis]} in a target's config"
            )
        wanted[axis] = value

    if width is not None:
        wanted["embed"] = width
        scaled("ffn", width, sizes["embed"])
        heads = overrides.get(names.get("head") or "")
        if heads is None and "head" in sizes and "head_dim" in sizes:
            explicit = names.get("head_dim") is not None
            head_dim = overrides.get(names.get("head_dim") or "", sizes["head_dim"])
            if explicit:  # head_dim stands in the config: heads follow the width's ratio
                scaled("head", width, sizes["embed"])
            elif width % head_dim:
                raise GrowthError(
                    f"axis head: width {width} is not a multiple of head_dim {head_dim}; "
                    f"choose another width, or say {names['head']} in a target's config"
                )
            else:
                wanted["head"] = width // head_dim
        if "kv_head" in sizes:
            scaled("kv_head", heads or wanted.get("head", sizes["head"]), sizes["head"])
    values = {n: wanted[axis] for axis, n in names.items() if n and axis in wanted and n not in overrides}
    axis_of = {n: axis for axis, n in names.items()}
    try:
        # what the config leaves to its default stays so where the default agrees
        stated = {n: v for n, v in values.items() if getattr(old, n, None) is not None}
        new = with_values(old, {**stated, **overrides})
        odd = {n: v for n, v in values.items() if architecture.sizes[axis_of[n]].read(new) != v}
        return with_values(new, odd) if odd else new
    except Exception as error:  # each model's config checks its values in its own way
        raise GrowthError(f"{type(old).__name__} refuses {values | overrides}: {error}") from error


def _by_own_names(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Values under the names that the config stores: `num_hidden_layers` is GPT-2's `n_layer`.

    Raises:
        GrowthError: for one that is given under two names.
    """
    own: dict[str, Any] = {}
    for name, value in values.items():
        stored = getattr(config, "attribute_map", {}).get(name, name)
        if stored in own:
            raise GrowthError(f"{stored}={own[stored]!r} was given, and {value!r} under another of its names")
        own[stored] = value
    return own


def with_values(old: Any, values: dict[str, Any]) -> Any:
    """A new config of the same class with other values."""
    if hasattr(old, "to_dict") and hasattr(old, "from_dict"):
        state = old.to_dict()
        state.pop("_name_or_path", None)  # what lies there has other shapes
        for name in ("layer_types", "architectures"):  # per-layer lists are made anew from the layer count
            if state.get(name) is not None and name not in values:
                state.pop(name)
        new = type(old).from_dict({**state, **values})
        if getattr(old, "_attn_implementation", None) is not None:
            new._attn_implementation = old._attn_implementation
        return new
    if dataclasses.is_dataclass(old) and not isinstance(old, type):
        return dataclasses.replace(old, **values)
    new = copy.deepcopy(old)
    for name, value in values.items():
        setattr(new, name, value)
    return new


def build(
    architecture: Architecture, small: nn.Module, config: Any, seed: int, random: bool = True
) -> nn.Module:
    """A fresh model of the source's class, in its dtypes, on its device, in its train/eval mode.

    It has the source's generation config, too.

    Args:
        random: False leaves parameters without content where the constructor fills them with random numbers,
            which is most of its time.

    Raises:
        GrowthError: for a config of another class, or one that the model refuses.
    """
    like, own = next(small.parameters()), type(architecture.config(small))
    if not isinstance(config, own):
        raise GrowthError(f"the target is a {type(config).__name__}; a {own.__name__} or a module is needed")
    with no_modes():  # it is to be trained, whatever mode this is
        try:
            large = drawn(lambda: architecture.build(small, config), seed, fill=random)
        except Exception as error:  # whatever the model's own constructor raises
            raise GrowthError(f"{type(small).__name__} refuses the target's config: {error}") from error
        cast_as(small, large)
        large = large.to(like.device)
    if getattr(small, "generation_config", None) is not None:
        large.generation_config = copy.deepcopy(small.generation_config)
    return large.train(small.training)


def materialize(
    model: nn.Module,
    device: torch.device,
    seed: int,
    written: Collection[str] = (),
    like: nn.Module | None = None,
) -> None:
    """Give a model on the meta device memory on `device`, initialised from `seed`.

    Ties stay, buffers come from the model's config, in the dtypes of those of the model `like`, if given. Of
    a sharded one only the buffers are initialised: its parameters must all be among those that will be
    `written`.

    Raises:
        GrowthError: when it has buffers and no way to compute them, or sharded parameters that stay.
    """
    if not any(p.is_meta for p in model.parameters()):
        return
    sharded = any(is_sharded(p) for p in model.parameters())
    if sharded and (left := [n for n, _ in model.named_parameters() if n not in written]):
        raise GrowthError(
            f"the method keeps the target's own values of {', '.join(left[:3])}, and a sharded target on the "
            "meta device has none: pass one that is initialised"
        )
    hub = hasattr(model, "init_weights") and hasattr(model, "tie_weights")
    buffers = [n for n, b in model.named_buffers() if b.is_meta]
    if buffers and not hub:
        raise GrowthError(
            f"the target's buffers {', '.join(buffers[:3])} are on the meta device and only its constructor "
            "can compute them: pass a built module"
        )
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(p), []).append((module, name))
    if like is not None:
        cast_buffers(like, model)
    model.to_empty(device=device)
    for (module, name), *others in owners.values():
        for other, other_name in others:
            setattr(other, other_name, getattr(module, name))

    def initialise() -> None:
        for module in model.modules():
            if hub:
                module.__dict__.pop("_is_hf_initialized", None)
            elif not sharded and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        if hub:
            for p in model.parameters():
                p._is_hf_initialized = sharded  # type: ignore[attr-defined]
            model.init_weights()  # type: ignore[operator]

    drawn(initialise, seed)
