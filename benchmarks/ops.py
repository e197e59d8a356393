"""`ligo_fast.ops.grow` on one stack, and what else computes it.

Dense torch products, index_select, FastKron; all of them return a new tensor.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

import ligo_fast as lf
from benchmarks import gate
from ligo_fast.bench.cases import OpCase
from ligo_fast.bench.gate import inexact, is_green, is_near
from ligo_fast.bench.measure import OURS, PLAIN, Effort, Peer, compare, one_line
from ligo_fast.bench.timing import Stopwatch, Variant, backend
from ligo_fast.maps import Identity, Selection

DENSE, INDEX, FASTKRON = "dense products", "index_select", "FastKron"


class OpBench:
    """One case: its tensors, and the peers that write the same layers."""

    def __init__(self, case: OpCase) -> None:
        self.case = case
        self.stack = case.stack()
        self.depth, self.rows, self.columns = case.maps()
        self.dense = [m.dense(torch.float32) for m in (self.depth, self.rows, self.columns)]
        self.turned = [m.t().contiguous() for m in self.dense[1:]]
        self.grown_bytes = 4 * math.prod(map(len, self.dense))

    def ours(self) -> Tensor:
        return lf.ops.grow(self.stack, self.depth, self.rows, self.columns)

    def plain(self) -> Tensor:
        with backend(PLAIN):
            return self.ours()

    def products(self) -> Tensor:
        """As one would write it in torch; maps that are the identity cost nothing."""
        depth, rows, columns = self.dense
        y = self.stack
        if not isinstance(self.depth, Identity):
            if isinstance(self.depth, Selection):
                y = y[self.depth.index]
            else:
                y = torch.tensordot(depth, y, 1)
        if not isinstance(self.rows, Identity):
            y = rows @ y
        return y if isinstance(self.columns, Identity) else y @ columns.t()

    def by_index(self) -> Tensor:
        """Layers, rows and columns one after the other; the scales are multiplied first."""
        y, scales = self.stack, torch.ones(())
        for dim, m in enumerate((self.depth, self.rows, self.columns)):
            assert isinstance(m, Selection)
            y = y.index_select(dim, m.index)
            if m.scale is not None:
                scales = scales * m.scale.view([-1 if d == dim else 1 for d in range(3)])
        return y.mul_(scales)

    def fastkron(self) -> Tensor:
        """The two-sided product alone, (U kron V) vec(W) for all layers at once."""
        from pyfastkron import fastkrontorch

        layers = len(self.stack)
        y: Tensor = fastkrontorch.gemkm(self.stack.view(layers, -1), self.turned)
        return y.view(layers, len(self.dense[1]), len(self.dense[2]))

    def peers(self) -> dict[str, Any]:
        """What can do this case."""
        found = {OURS: self.ours, PLAIN: self.plain, DENSE: self.products}
        if self.case.kind == "select":
            found[INDEX] = self.by_index
        if self.case.kind == "expand":
            found[FASTKRON] = self.fastkron
        return found

    def exact(self) -> Tensor:
        return lf.reference.grow(self.stack, *self.dense)

    @property
    def work(self) -> tuple[int, int]:
        """Fewest bytes, the stacks and factors once, and FLOPs of the maps' structure."""
        maps = (self.depth, self.rows, self.columns)
        factors = sum(t.nbytes for m in maps for t in m.factors().values())
        (l1, o1, i1), i2 = self.stack.shape, len(self.dense[2])
        flops = self.depth.flops(o1 * i1) + self.columns.flops(l1 * o1) + self.rows.flops(l1 * i2)
        return self.stack.nbytes + self.grown_bytes + factors, flops

    def measure(self, watch: Stopwatch, effort: Effort) -> dict[str, Any]:
        """A row, or why there is none; a peer that is wrong or cannot run is left out, with the reason."""
        exact, errors, why = self.exact(), {}, {}
        for name, run in self.peers().items():
            if name == FASTKRON and importlib.util.find_spec("pyfastkron") is None:
                why[name] = "pyfastkron is not installed"
                continue
            try:
                errors[name] = float(gate.error_of(run(), exact))
            except Exception as error:  # of another library
                why[name] = one_line(error)
        plain = errors[DENSE]
        gates = {name: {"layers": gate.check(error, plain, 2.0)} for name, error in errors.items()}
        near = {n: is_green(g) if n == OURS else is_near(g, torch.float32) for n, g in gates.items()}
        why |= {n: inexact(gates[n]) for n in errors if not near[n]}
        if OURS in why:
            return {"status": "red gate", "reason": why[OURS], "gate": gates[OURS]}
        able = {
            n: Peer(Variant(run), dict, self.grown_bytes) for n, run in self.peers().items() if n not in why
        }
        found = compare(able, gates, watch, effort, self.work, torch.float32)
        found["variants"] |= {name: {"seconds": None, "reason": reason} for name, reason in why.items()}
        return found
