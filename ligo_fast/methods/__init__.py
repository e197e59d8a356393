"""Growth methods: each names the factors of an axis (width) or of the layers (depth), nothing else.

A width method is `f(axis, context, **options) -> AxisMaps` for a basic axis that grows; a depth method is
`f(family, context, **options) -> Map` of shape (L_large, L_small). `@width("name")` or `@depth("name")`
makes it known; every file here is imported.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from ..errors import GrowthError
from .chosen import Chosen, read_layers

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method:
    """A registered method and what the engine must know of it.

    Attributes:
        composed: it wants composed axes whole (q, not head and head_dim apart).
        fresh: what it leaves out stays as the target has it, instead of becoming zero.
        next_layer: rows of new units are taken from the source layer above (bert2BERT's AKI).
        writes: False for the control that takes nothing from the small model.
        reorders: it has a say where the number of layers stays, too.
    """

    name: str
    fn: Callable[..., Any]
    composed: bool = False
    fresh: bool = False
    next_layer: bool = False
    writes: bool = True
    reorders: bool = False

    @property
    def layers(self) -> list[int] | None:
        """The source layers that it lists; None for a method of any number of layers."""
        return self.fn.layers if isinstance(self.fn, Chosen) else None

    def options(self) -> set[str]:
        """Names of the keyword options it takes."""
        parameters = inspect.signature(self.fn).parameters.values()
        return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


WIDTH: dict[str, Method] = {}
DEPTH: dict[str, Method] = {}
DEFAULT_WIDTH, DEFAULT_DEPTH = "copy", "stack"


def width(name: str, **flags: bool) -> Callable[[F], F]:
    """Register a width method."""

    def register(fn: F) -> F:
        WIDTH[name] = Method(name, fn, **flags)
        return fn

    return register


def depth(name: str, **flags: bool) -> Callable[[F], F]:
    """Register a depth method."""

    def register(fn: F) -> F:
        DEPTH[name] = Method(name, fn, **flags)
        return fn

    return register


def names() -> dict[str, list[str]]:
    """The methods there are: {"width": [...], "depth": [...], "both": [...]}."""
    return {"width": sorted(WIDTH), "depth": sorted(DEPTH), "both": sorted(set(WIDTH) & set(DEPTH))}


def resolve(method: str | Sequence[str]) -> tuple[Method, Method]:
    """The (width, depth) pair that a name, a pair, or "width+depth" stands for.

    A name that is only a width method grows depth by stacking; one that is only a depth method grows
    width by copying. In place of a depth method's name a list of source layers may stand: "0-11,4-15".

    Raises:
        GrowthError: for an unknown name, listing those there are.
    """
    if not isinstance(method, str | Sequence) or not all(isinstance(part, str) for part in method):
        raise GrowthError(f"method={method!r}: a name, 'width+depth' or a pair of names is needed")
    parts = method.split("+") if isinstance(method, str) else list(method)
    if not parts:
        parts = [""]
    if len(parts) <= 2 and (layers := read_layers(parts[-1])) is not None:
        parts = parts if len(parts) == 2 else [DEFAULT_WIDTH, parts[0]]
        if parts[0] in WIDTH:
            return WIDTH[parts[0]], Method(parts[1], Chosen(layers), reorders=True)
    if len(parts) == 1:
        name = parts[0]
        known = name in WIDTH or name in DEPTH
        pair = (name if name in WIDTH else DEFAULT_WIDTH, name if name in DEPTH else DEFAULT_DEPTH)
    else:
        known = len(parts) == 2 and parts[0] in WIDTH and parts[1] in DEPTH
        pair = (parts[0], parts[-1])
    if not known:
        raise GrowthError(
            f"unknown method {method!r}; width methods: {', '.join(sorted(WIDTH))}; "
            f"depth methods: {', '.join(sorted(DEPTH))}, or source layers such as 0-11,4-15"
        )
    return WIDTH[pair[0]], DEPTH[pair[1]]


def split_options(
    pair: tuple[Method, Method], options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Which options go to the width and which to the depth method.

    Raises:
        GrowthError: for an option that neither takes, listing those they do.
    """
    takes = [m.options() for m in pair]
    if unknown := set(options) - takes[0] - takes[1]:
        raise GrowthError(
            f"option {', '.join(sorted(unknown))} is not one of {pair[0].name}+{pair[1].name}'s: "
            f"{', '.join(sorted(takes[0] | takes[1])) or 'none'}"
        )
    w, d = ({k: v for k, v in options.items() if k in names} for names in takes)
    return w, d


for _file in pkgutil.iter_modules(__path__):
    import_module(f".{_file.name}", __name__)
