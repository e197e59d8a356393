"""What a plan of launches is given: families of weights, and memory to work in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..maps import Map


@dataclass
class Job:
    """outs[l] = U (sum_j D[l, j] sources[j]) V^T; views, with the parameter each is a view of."""

    depth: Map | None
    rows: Map
    cols: Map
    sources: Sequence[Tensor]
    outs: Sequence[Tensor]
    source_bases: Sequence[Tensor]
    out_bases: Sequence[Tensor]

    def factors(self) -> list[Tensor]:
        maps = (self.depth, self.rows, self.cols)
        return [t for m in maps if m is not None for t in m.factors().values()]


class Pool:
    """One workspace for plans that run one after the other, as large as the largest of them needed."""

    def __init__(self, device: torch.device) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device=device)
        self.taken = 0  # how often there was other memory: what lay in it is lost

    def reserve(self, size: int) -> None:
        if self.memory.numel() < size:
            self.free()  # first the old one goes
            self.memory = torch.empty(size, dtype=torch.uint8, device=self.memory.device)

    def free(self) -> None:
        """Give the memory back until a plan needs it again."""
        self.memory = self.memory[:0].clone()
        self.taken += 1
