"""The published operation sequence as a peer of an operator, eager and compiled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import ligo_fast as lf
from benchmarks.sequence import Sequence
from ligo_fast.bench.measure import Peer, parameter_bytes
from ligo_fast.bench.timing import Variant

PUBLISHED, COMPILED = "published", "compiled"


def published(op: lf.GrowthOperator, dtype: torch.dtype, compiled: bool = True) -> dict[str, Sequence]:
    """The sequence in the weights' dtype; under torch.compile it is compiled once for a layer."""
    found = {PUBLISHED: Sequence(op, dtype)}
    if compiled:
        found[COMPILED] = Sequence(op, dtype, compiled=True)
    return found


def peers(op: lf.GrowthOperator, work: str, sequences: Mapping[str, Sequence]) -> dict[str, Peer]:
    """Doing "apply" or "pullback" of an operator, from the same factors and gradients."""
    return {name: _peer(op, work, sequence) for name, sequence in sequences.items()}


def _peer(op: lf.GrowthOperator, work: str, sequence: Sequence) -> Peer:
    if work == "apply":
        variant = Variant(sequence.forward, sequence.release, sequence.release)
        return Peer(variant, lambda: sequence.grown, parameter_bytes(op.large))

    def before() -> None:
        for leaf in (*sequence.width.values(), *sequence.mixes.values()):
            leaf.grad = None
        sequence.forward()

    def run() -> None:
        sequence.backward({n: p.grad for n, p in op.large.named_parameters() if p.grad is not None})

    def results() -> dict[str, Tensor]:
        return {n: g for kind in sequence.gradients(op).values() for n, g in kind.items()}

    return Peer(Variant(run, before, sequence.release), results, parameter_bytes(op))
