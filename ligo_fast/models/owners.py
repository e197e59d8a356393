"""Where parameters belong, by name: later another tensor, or another module, may be in the place of one."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ..native import layouts

Tensors = nn.Module | dict[str, Tensor]  # a model's parameters, or others under the same names


class Owners:
    """The modules that have parameters of some names, or a dict that has them. Keeps no module's tensor."""

    def __init__(self, tensors: Tensors, names: Iterable[str]) -> None:
        self.names = list(dict.fromkeys(names))
        self._tensors = tensors
        self._find()

    def _find(self) -> None:
        """Walk over the modules once: the dicts that parameters are in, and how each module was come to."""
        self._parents: list[dict[str, Any]] = []
        self._steps: list[str] = []
        self._modules: list[Any] = []
        if not isinstance(self._tensors, nn.Module):
            self._owners: list[dict[str, Any]] = [self._tensors] * len(self.names)
            self._keys = self.names
            return
        modules = dict(self._tensors.named_modules(remove_duplicate=False))
        paths = [name.rpartition(".") for name in self.names]
        self._keys = [key for _, _, key in paths]
        self._owners = [modules[p]._parameters if p in modules else {} for p, _, _ in paths]
        ways = (p.split(".") for p in dict.fromkeys(p for p, _, _ in paths) if p in modules)
        passed = dict.fromkeys(".".join(way[: n + 1]) for way in ways for n in range(len(way)))
        for path in filter(None, passed):
            parent, _, step = path.rpartition(".")
            self._parents.append(modules[parent]._modules)
            self._steps.append(step)
            self._modules.append(modules[path])

    def now(self) -> list[Any]:
        """The parameters as they are, None for one that is gone, in the order of the names.

        Hundreds in a few microseconds; only where a module is another one the model is walked again.
        """
        if not layouts.reader.holds(self._parents, self._steps, self._modules):
            self._find()
        return layouts.reader.find(self._owners, self._keys)

    def __iter__(self) -> Iterator[Any]:
        """The same one after the other, in the modules where they were found last: for a first look."""
        return map(dict.get, self._owners, self._keys)

    def hold(self, tensors: Iterable[Tensor]) -> bool:
        """Whether every parameter is the very tensor that is given."""
        return all(map(operator.is_, self.now(), tensors))
