"""A checkpoint as a module on the meta device: what the operator is made from, without the model's code.

Names and shapes come from the weight files, sizes from config.json. Importing transformers and building the
model would tell the same and take longer than growing many a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..architectures import Architecture, numbered, registered
from ..axes import Axis
from ..errors import GrowthError
from ..models.tables import parse, read_axes
from .folder import Checkpoint
from .header import Entry

HEADED = re.compile(r"LMHeadModel$|For(CausalLM|MaskedLM|PreTraining)$")
HEADLESS = re.compile(r"Model$|For[A-Z]\w*(Classification|Answering|Choice|Prediction|Teacher|Modeling)$")
# axes that no method grows, and their names in configs
FIXED = {
    "vocab": ("vocab_size",),
    "position": ("max_position_embeddings", "n_positions"),
    "segment": ("type_vocab_size",),
}


class Skeleton(nn.Module):
    """Parameters on the meta device, under the names that the files have."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config

    def add(self, name: str, parameter: nn.Parameter) -> None:
        """Put a parameter at a dotted name."""
        module: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        module.register_parameter(last, parameter)


@dataclass(frozen=True)
class Source:
    """A checkpoint read against its table.

    Attributes:
        weights: the tensors that are parameters; a tied head is not among them.
        tied: the name of the embedding that is the output head, too; "" where there is none.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    skeleton: Skeleton
    weights: dict[str, Entry]
    tied: str

    def heads(self) -> list[str]:
        """Output heads of their own, which are not the embedding."""
        return [n for n in self.weights if _is_head(self.architecture, n)]


def read_source(checkpoint: Checkpoint) -> Source:
    """A checkpoint as a module on the meta device.

    Raises:
        GrowthError: for a model type without a table, tensors that no row covers, or a config that
            disagrees with the tensors, naming file and field.
    """
    architecture = _architecture(checkpoint)
    config = as_namespace(checkpoint.config, architecture, f"{checkpoint.folder / 'config.json'}")
    weights = {n: e for n, e in checkpoint.entries.items() if not architecture.is_buffer(n)}
    heads = [n for n in weights if _is_head(architecture, n)]
    embeddings = [n for n in weights if _is(architecture, n, "vocab", "embed")]
    tied = ""
    if _ties(checkpoint, architecture, bool(heads)):
        if heads and embeddings and not _same_bytes(weights[heads[0]], weights[embeddings[0]]):
            raise GrowthError(
                f"{weights[heads[0]].file}: tensor {heads[0]}: config.json says tie_word_embeddings, but it "
                f"is not equal to {embeddings[0]}"
            )
        tied = embeddings[0] if embeddings else ""
        weights = {n: e for n, e in weights.items() if n not in heads}
    elif not heads and _headed(checkpoint):
        raise GrowthError(
            f"{checkpoint.folder}: config.json says tie_word_embeddings=false, no head is there"
        )
    _check(checkpoint, architecture, weights)
    skeleton = make_skeleton(architecture, config, _shapes(weights), tied)
    return Source(checkpoint, architecture, skeleton, weights, tied)


def make_skeleton(
    architecture: Architecture,
    config: SimpleNamespace,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tied: str,
) -> Skeleton:
    """A module with these parameters, and the output head that is the embedding `tied`."""
    skeleton = Skeleton(config)
    for name, (dtype, shape) in tensors.items():
        try:
            p = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
            skeleton.add(name, p)
        except (KeyError, TypeError) as error:
            raise GrowthError(f"tensor {name}: not a parameter's name: {error}") from error
    if tied:  # is_tied() looks for a parameter with a second name, whatever and wherever that is
        skeleton.add("tied_head.weight", skeleton.get_parameter(tied))
    return skeleton


def as_namespace(config: Mapping[str, Any], architecture: Architecture, where: str) -> SimpleNamespace:
    """A config's values as attributes; sizes that it leaves to a default are None.

    Raises:
        GrowthError: for sizes that are no natural numbers, naming the field.
    """
    names = {size.name: size for size in architecture.sizes.values() if size.name}
    values: dict[str, Any] = {**dict.fromkeys(names), **config}
    for name, size in names.items():
        n = values[name]
        if n is None and size.default is None:
            raise GrowthError(f"{where}: no {name}")
        if n is not None and (type(n) is not int or n < 1):
            raise GrowthError(f"{where}: {name}: {n!r} is not a size")
    if architecture.eps and not isinstance(values.get(architecture.eps), int | float):
        raise GrowthError(f"{where}: {architecture.eps}: {values.get(architecture.eps)!r} is not a number")
    return SimpleNamespace(**values)


def large_skeleton(source: Source, config: SimpleNamespace) -> tuple[Skeleton, dict[str, str]]:
    """The grown checkpoint's module, in the small one's dtype, and for each tensor the small one it is like.

    Raises:
        GrowthError: for sizes that do not fit, naming the axis.
    """
    architecture, weights = source.architecture, source.weights
    axes = read_axes(architecture, source.skeleton, Skeleton(config))
    like: dict[str, str] = {}
    layers: dict[str, list[str]] = {}
    for name in weights:
        row = architecture.lookup(name)
        if row is None or row[1] is None:
            like[name] = name
        elif row[1] == 0:
            layers[_template(architecture, name, row[0])] = [name]
    for layer in range(axes["layer"].large):  # all of a layer side by side
        like |= {template.replace("*", str(layer)): name for template, (name,) in layers.items()}
    tensors = {}
    for name, old in like.items():
        row = architecture.lookup(old)
        assert row is not None
        tensors[name] = (weights[old].dtype, _grown(row[2], weights[old].shape, axes))
    return make_skeleton(architecture, config, tensors, source.tied), like


def _grown(dims: str, shape: tuple[int, ...], axes: dict[str, Axis]) -> tuple[int, ...]:
    return tuple(
        sum(axes[t.axis].large if t.axis in axes else n for t in terms)
        for n, terms in zip(shape, parse(dims), strict=True)
    )


def _template(architecture: Architecture, name: str, row: str) -> str:
    """The name with * for the layer's number."""
    for template, layer in numbered(name):
        if layer is not None:
            found = architecture.lookup(template.replace("*", str(layer + 1)))
            if found is not None and found[:2] == (row, layer + 1):
                return template
    raise AssertionError(name)


def _architecture(checkpoint: Checkpoint) -> Architecture:
    kind = checkpoint.config["model_type"]
    try:
        return registered(kind)
    except GrowthError:
        raise GrowthError(
            f"{checkpoint.folder / 'config.json'}: model_type: there is no architecture table for {kind!r}; "
            "in Python ligo_fast.register_architecture adds one, and checkpoint.grow_checkpoint grows by it"
        ) from None


def _is(architecture: Architecture, name: str, *dims: str) -> bool:
    row = architecture.lookup(name)
    return row is not None and [d.strip() for d in row[2].split(",")] == list(dims)


def _is_head(architecture: Architecture, name: str) -> bool:
    return _is(architecture, name, "vocab", "embed:in")


def _headed(checkpoint: Checkpoint) -> bool:
    """Whether the model's class has a language-model head."""
    classes = checkpoint.config.get("architectures")
    if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
        raise GrowthError(
            f"{checkpoint.folder / 'config.json'}: architectures: the model's class is needed there: it says "
            "whether there is an output head"
        )
    return HEADED.search(classes[0]) is not None


def _check_class(checkpoint: Checkpoint) -> None:
    """Raises GrowthError for a class of which it is not known whether its head is the embedding."""
    name = checkpoint.config["architectures"][0]
    if not HEADED.search(name) and not HEADLESS.search(name):
        raise GrowthError(
            f"{checkpoint.folder / 'config.json'}: architectures: {name!r} is not known, nor whether it has "
            "an output head, which tie_word_embeddings would make the embedding: name the class of "
            "transformers that it is like"
        )


def _ties(checkpoint: Checkpoint, architecture: Architecture, has_head: bool) -> bool:
    """Whether the output head is the embedding; `has_head`: the files have one."""
    if not any(d.replace(" ", "") == "vocab,embed:in" for d in architecture.parameters.values()):
        return False
    tie = checkpoint.config.get("tie_word_embeddings", architecture.ties)
    if not tie or _headed(checkpoint):
        return bool(tie)
    if not has_head:
        _check_class(checkpoint)
    return False


def _same_bytes(a: Entry, b: Entry, block: int = 8 << 20) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with a.file.open("rb") as x, b.file.open("rb") as y:
        x.seek(a.start)
        y.seek(b.start)
        steps = [min(block, a.nbytes - at) for at in range(0, a.nbytes, block)]
        return all(x.read(n) == y.read(n) for n in steps)


def _shapes(weights: dict[str, Entry]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (e.dtype, e.shape) for name, e in weights.items()}


def _check(checkpoint: Checkpoint, architecture: Architecture, weights: dict[str, Entry]) -> None:
    """Every tensor has a row and a floating dtype; fixed sizes are those of the config."""
    for name, e in weights.items():
        row = architecture.lookup(name)
        if row is None:
            raise GrowthError(f"{e.file}: tensor {name}: the table {architecture.name!r} has no row for it")
        if not e.dtype.is_floating_point or e.dtype.itemsize < 2:
            raise GrowthError(f"{e.file}: tensor {name}: weights of {e.dtype} cannot be grown")
        dims = parse(row[2])
        if len(dims) != len(e.shape):
            raise GrowthError(
                f"{e.file}: tensor {name}: {len(e.shape)} dimensions, the table has {len(dims)}"
            )
        for n, terms in zip(e.shape, dims, strict=True):
            for field in FIXED.get(terms[0].axis, ()):
                stated = checkpoint.config.get(field)
                if stated is not None and stated != n:
                    raise GrowthError(
                        f"{e.file}: tensor {name}: {n} of axis {terms[0].axis}, config.json says "
                        f"{field}={stated}"
                    )


def check_fixed(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> None:
    """A target's config must keep what no method grows.

    Raises:
        GrowthError: naming the field and both values.
    """
    for field in ("model_type", *(f for fields in FIXED.values() for f in fields)):
        if new.get(field, old.get(field)) != old.get(field):
            raise GrowthError(f"{where}: {field}: {new[field]!r}, the source has {old.get(field)!r}")
