"""Work on many matrices as one compiled call: a table of items and one of tiles, handed over by address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import layouts


class Written(Protocol):
    """What an item is here: something with an out."""

    @property
    def out(self) -> Tensor: ...


T = TypeVar("T", bound=Written)


class Call(Generic[T]):
    """Items that are checked and put in tables once. It keeps their tensors.

    Raises:
        ValueError: for items that `why_not` gives a reason against.
    """

    def __init__(self, items: Sequence[T], why_not: Callable[[Sequence[T]], str]) -> None:
        self.items = [item for item in items if item.out.numel()]
        if not self.items:
            return
        if why := why_not(self.items):
            raise ValueError(why)
        self.device = self.items[0].out.device
        words, tiles = self.tabulate()
        self._words = torch.tensor(words, dtype=torch.int64, device="cpu").to(self.device)
        self._tiles = torch.from_numpy(tiles.astype(np.int32)).to(self.device)
        self._tables = self._words.data_ptr(), self._tiles.data_ptr(), len(tiles)
        self._outs = [item.out for item in self.items]

    def tabulate(self) -> tuple[list[list[int]], np.ndarray]:
        """The words of every item, and the tiles (n, 3) of all: item, row, column."""
        raise NotImplementedError

    def run(self, words: int, tiles: int, count: int) -> None:
        """Call the compiled code with the tables' addresses and the number of tiles."""
        raise NotImplementedError

    def __call__(self) -> None:
        """Write every out."""
        if not self.items:
            return
        self.run(*self._tables)
        layouts.reader.increment_version(self._outs)


def tiles_of(number: int, shape: Sequence[int], tile: tuple[int, int]) -> np.ndarray:
    """The tiles (n, 3) of item `number`, whose out has `shape` as the table has it."""
    at = np.indices([-(-size // t) for size, t in zip(shape, tile, strict=True)]).reshape(2, -1)
    return np.stack([np.full(at.shape[1], number), at[0] * tile[0], at[1] * tile[1]], 1)
