"""Tables of axes and roles, one short file per model family, each imported; `register_architecture` adds one.

A table says, for every parameter, which axis each of its dimensions is and in which role:

    out      the parameter produces the axis                rows of a projection, a bias (the default)
    in       the parameter consumes it                      columns of a projection
    gain     a norm's weight on it          shift           a norm's bias on it
    gain+, shift+   the same on the last norm before an output head that may be tied to the embedding

Dimensions are written in order, separated by commas; `q|k|v` is a concatenation along one dimension;
a name that is neither a size nor an axis of the table (vocab, position, patch …) is fixed: it must be
equal in both models. `*`, at most once in a name, stands for the layer number.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from torch import nn

from ..errors import GrowthError

ROLES = ("out", "in", "gain", "shift", "gain+", "shift+")


@dataclass(frozen=True)
class Size:
    """Where a size stands in the model's config, and what it is when it stands nowhere or is None."""

    name: str | None = None
    default: Callable[[Any], int] | None = None

    def read(self, config: Any) -> int:
        value = None if self.name is None else getattr(config, self.name, None)
        if value is None:
            if self.default is None:
                raise GrowthError(f"the config has no {self.name!r}")
            value = self.default(config)
        return int(value)


@dataclass(frozen=True)
class Architecture:
    """One model family: parameter names -> axes and roles.

    Attributes:
        name: the family; for Hugging Face models, `config.model_type`.
        sizes: basic axis -> where its size is in the config. `embed` (the residual width), `layer`, `head`
            and `head_dim` are read by `lf.grow(width=, depth=)`.
        parameters: name pattern -> dimensions, see the module's text.
        axes: composed axis -> product of basic ones, e.g. `q: head.q*head_dim`. The tag after the dot marks
            a copy that a learned method may treat apart from the others of the same size; the tag `score`
            says that q and k are contracted over it and divided by its root, as attention does; `normed`
            that they pass a norm of their own over it.
        prefix: prepended to parameter names by the model with a task head, absent in the base model.
        norm, eps: the norm on the residual stream and its epsilon's name in the config.
        post_norm: the norm follows the residual sum (BERT) instead of preceding each sub-layer.
        rotary: head_dim carries rotary positions, which cannot be stretched or mixed.
        stored: how checkpoint files name a row where the module names it otherwise: file's pattern -> row.
        buffers: patterns of tensors in files that are no parameters; models compute them anew.
        ties: whether the output head is the embedding where the config says nothing of it.
        spread: the config's name for the standard deviation of new weights, as constructors draw them.
        scaled: rows that they draw with a multiple of it, and which, given the config.
        divisor: what attention divides its scores by, given the config and the layer, where that may not be
            the root of head_dim, which is what the maps of a growing head_dim make up for.
        match: whether a model is of this family, where `name` does not say it.
        config: the model's configuration, an object with the attributes named in `sizes`.
        build: a model of the same class from such a configuration.
    """

    name: str
    sizes: Mapping[str, Size]
    parameters: Mapping[str, str]
    axes: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    norm: Literal["layer", "rms"] = "layer"
    eps: str | None = None
    post_norm: bool = False
    rotary: bool = False
    stored: Mapping[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    ties: bool = True
    spread: str = "initializer_range"
    scaled: Mapping[str, Callable[[Any], float]] = field(default_factory=dict)
    divisor: Callable[[Any, int], float] | None = None
    match: Callable[[nn.Module], bool] | None = None
    config: Callable[[nn.Module], Any] = lambda model: model.config
    build: Callable[[nn.Module, Any], nn.Module] = lambda model, config: type(model)(config)

    def __reduce__(self) -> tuple[Callable[[str], Architecture], tuple[str]]:
        """Copied and pickled by name: tables hold functions."""
        return registered, (self.name,)

    def matches(self, model: nn.Module) -> bool:
        if getattr(getattr(model, "config", None), "model_type", None) == self.name:
            return True  # of a checkpoint folder there is no more than this
        return self.match is not None and self.match(model)

    def read_sizes(self, model: nn.Module) -> dict[str, int]:
        config = self.config(model)
        return {axis: size.read(config) for axis, size in self.sizes.items()}

    def read_eps(self, model: nn.Module) -> float:
        """The norm's epsilon, 0 if the table does not say where it stands."""
        return float(getattr(self.config(model), self.eps)) if self.eps else 0.0

    def lookup(self, name: str) -> tuple[str, int | None, str] | None:
        """(pattern, layer number, dimensions) of a parameter, or None when no row covers it."""
        for candidate in dict.fromkeys((name, name.removeprefix(self.prefix + "."))):
            for pattern, layer in numbered(candidate):
                row = self.stored.get(pattern, pattern)
                if row in self.parameters:
                    return row, layer, self.parameters[row]
        return None

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor of a file is no parameter."""
        short = name.removeprefix(self.prefix + ".")
        return any(pattern in self.buffers for pattern, _ in numbered(short))


def numbered(name: str) -> Iterator[tuple[str, int | None]]:
    """A name as it is, then with * for each of its numbers, any of which may be the layer's."""
    yield name, None
    for number in re.finditer(r"(?<=\.)\d+(?=\.)", name):
        yield f"{name[: number.start()]}*{name[number.end() :]}", int(number[0])


_REGISTRY: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture) -> Architecture:
    """Add a model family, or replace the one of the same name.

    Raises:
        GrowthError: when a row names a role or an axis that does not exist, or a size is no `Size`.
    """
    if odd := [axis for axis, size in architecture.sizes.items() if not isinstance(size, Size)]:
        raise GrowthError(f"architecture {architecture.name!r}: the size of {odd[0]} is no Size")
    known = {"embed", "layer"} - set(architecture.sizes)
    if known:
        raise GrowthError(f"architecture {architecture.name!r}: no size for {', '.join(sorted(known))}")
    for axis, product in architecture.axes.items():
        for atom in product.split("*"):
            if atom.split(".")[0] not in architecture.sizes:
                raise GrowthError(
                    f"architecture {architecture.name!r}: axis {axis!r} uses unknown size {atom!r}"
                )
    for pattern, dims in architecture.parameters.items():
        if pattern.count("*") > 1:
            raise GrowthError(f"architecture {architecture.name!r}: {pattern}: * stands for one layer number")
        for term in re.split(r"[,|]", dims):
            role = term.strip().partition(":")[2]
            if role and role not in ROLES:
                raise GrowthError(f"architecture {architecture.name!r}: {pattern}: unknown role {role!r}")
    _REGISTRY[architecture.name] = architecture
    return architecture


def registered(name: str) -> Architecture:
    """The table registered under a name.

    Raises:
        GrowthError: for a name that none has (of an operator that was pickled where there was one, say).
    """
    if name not in _REGISTRY:
        raise GrowthError(
            f"there is no architecture table {name!r} here: add it with ligo_fast.register_architecture first"
        )
    return _REGISTRY[name]


def known_architecture(model: nn.Module) -> Architecture | None:
    """The table of a model, or None."""
    return next((a for a in reversed(_REGISTRY.values()) if a.matches(model)), None)


def architecture_of(model: nn.Module) -> Architecture:
    """The table of a model.

    Raises:
        GrowthError: for a model of an unknown type, naming those that are known.
    """
    if (architecture := known_architecture(model)) is not None:
        return architecture
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    raise GrowthError(
        f"no architecture table for {type(model).__name__} (type {kind!r}); known: "
        f"{', '.join(sorted(_REGISTRY))}. {_inside(model)}Add one with ligo_fast.register_architecture."
    )


def _inside(model: nn.Module) -> str:
    """What to grow of a wrapper: the first module in it that has a table."""
    known = ((n, m) for n, m in model.named_modules() if n and known_architecture(m) is not None)
    name, inner = next(known, ("", None))
    return f"Its .{name} is a {type(inner).__name__} and has one. " if name else ""


for _file in pkgutil.iter_modules(__path__):
    import_module(f".{_file.name}", __name__)
