"""pytest-benchmark over growing whole models: `pytest benchmarks --benchmark-only`.

The cases are those of `ligo-fast bench`; ratios are `python -m benchmarks.peers` and `benchmarks.cpu`.
"""

from __future__ import annotations

from typing import Any

import pytest

from ligo_fast.bench.cases import CASES, group
from ligo_fast.bench.gate import is_green
from ligo_fast.bench.measure import OURS, PLAIN, Bench, fewest
from ligo_fast.bench.timing import Stopwatch

WORK = [("bert", "apply"), ("bert", "pullback"), *((name, "apply") for name in group("select"))]


@pytest.mark.parametrize(("name", "work"), WORK)
def test_growth(name: str, work: str, benchmark: Any, cold: Stopwatch) -> None:
    """`apply_`, or the pull-back of random gradients right after it; no number for what is wrong."""
    bench = Bench(CASES[name].operator(), cold)
    gates, why = bench.gates(work, {OURS: bench.mine(work, "auto"), PLAIN: bench.mine(work, PLAIN)})
    assert OURS not in why and is_green(gates[OURS]), why
    variant = bench.mine(work, bench.ours).variant
    size, flops = fewest(bench.op, work)
    benchmark.extra_info |= {"fewest bytes": size, "fewest flops": flops}
    benchmark.group = f"{name}: {work}"

    def setup() -> None:
        variant.before()
        cold.flush()

    benchmark.pedantic(variant.run, setup=setup, rounds=7, warmup_rounds=1)
