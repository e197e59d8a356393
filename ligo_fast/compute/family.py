"""A family of weights as the kernels' tables see it: matrices in slots."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..kernels.table import Matrix, Slots
from ..maps import Map


@dataclass
class Family:
    """ys[l] = U (sum_j D[l, j] ws[j]) V^T as matrices in slots; gs are dL/dys, dws where dL/dws goes."""

    depth: Map | None
    rows: Map
    cols: Map
    ws: list[Matrix]
    ys: list[Matrix]
    gs: list[Matrix]
    dws: list[Matrix] = field(default_factory=list)

    def now(self, slots: Slots) -> Family:
        """The same, with what the slots' addresses are now."""
        found = [
            [replace(m, lead=slots.lead(m.slot)) for m in ms] for ms in (self.ws, self.ys, self.gs, self.dws)
        ]
        return Family(self.depth, self.rows, self.cols, *found)

    def oriented(self) -> Family:
        """The same work with ys running along their columns; a column of numbers becomes a row."""
        y = self.ys[0]
        if (y.runs(1) and y.shape[1] > 1) or y.shape[0] == 1:
            return self
        turned = [[m.t() for m in ms] for ms in (self.ws, self.ys, self.gs, self.dws)]
        return Family(self.depth, self.cols, self.rows, *turned)
