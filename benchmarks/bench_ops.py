"""pytest-benchmark over the single ops: `pytest benchmarks --benchmark-only`.

Ratios to other libraries, taken in turn in one run, are `python -m benchmarks.peers`.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import gate
from benchmarks.ops import DENSE, OpBench
from ligo_fast.bench.cases import OPS
from ligo_fast.bench.measure import OURS
from ligo_fast.bench.timing import Stopwatch


@pytest.mark.parametrize("peer", [OURS, DENSE])
@pytest.mark.parametrize("name", [name for name in OPS if not name.startswith("tiny")])
def test_op(name: str, peer: str, benchmark: Any, cold: Stopwatch) -> None:
    """Blend, expand or select of one stack; no number for what is wrong."""
    op = OpBench(OPS[name])
    run, exact = op.peers()[peer], op.exact()
    ours, plain = float(gate.error_of(run(), exact)), float(gate.error_of(op.products(), exact))
    assert gate.check(ours, plain, allowed=2.0)["green"], (ours, plain)
    size, flops = op.work
    benchmark.extra_info |= {"fewest bytes": size, "fewest flops": flops}
    benchmark.group = name
    benchmark.pedantic(run, setup=cold.flush, rounds=15, warmup_rounds=2)
