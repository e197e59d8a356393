"""Addresses are 64 bits wide: tensors that reach beyond 2^31 elements, by stride tricks.

On a CPU the pages between the rows are never touched, so that they take no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_kernels import DEVICE, F16, Problem, diagonal, error, prefix, pull_back
from test_kernels import right_products as right_products
from torch import Tensor

from ligo_fast.compute import launching
from ligo_fast.compute.backend_triton import Plan
from ligo_fast.compute.waves import Wave
from ligo_fast.maps import Dense, PrefixDiagonal

APART = 2**30 + 16  # elements between rows: the third lies beyond 2^31


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    """On a GPU other processes need the memory, too."""
    yield
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def far(t: Tensor, start: int = 0, whole: Tensor | None = None) -> Tensor:
    """The values of a matrix with its rows far apart, in memory of its own or in some that is there."""
    if whole is None:
        whole = torch.empty(start + (t.shape[0] - 1) * APART + t.shape[1], dtype=t.dtype, device=t.device)
    return whole.as_strided(t.shape, (APART, 1), start).copy_(t)


def outs_and_gradients(problem: Problem) -> None:
    whole = torch.empty(3 * APART + 64, dtype=problem.dtypes[1], device=DEVICE)
    problem.grads[0] = far(problem.grads[0], 32, whole)
    problem.outs[0].set_(far(problem.outs[0], 0, whole))  # type: ignore[call-overload]


def sources(problem: Problem) -> None:
    problem.sources[0].set_(far(problem.sources[0]))  # type: ignore[call-overload]


def row_factor(problem: Problem) -> None:
    assert isinstance(problem.rows, PrefixDiagonal)
    problem.rows.C.set_(far(problem.rows.C))  # type: ignore[call-overload]


def column_factor(problem: Problem) -> None:
    assert isinstance(problem.cols, PrefixDiagonal)
    problem.cols.C.set_(far(problem.cols.C))  # type: ignore[call-overload]


def depth_factor(problem: Problem) -> None:
    assert isinstance(problem.depth, Dense)
    problem.depth.M.set_(far(problem.depth.M))  # type: ignore[call-overload]


@pytest.mark.parametrize("stretch", [outs_and_gradients, sources, row_factor, column_factor, depth_factor])
def test_more_than_two_to_the_31_elements(stretch: Any) -> None:
    """Rows of one kind of tensor lie 2^30 elements apart; all else is compared with the float64 oracle."""
    layers = (2, 3) if stretch is depth_factor else (1, 1)
    problem = Problem(
        layers,
        diagonal(6, 3) if stretch is row_factor else diagonal(4, 3),
        prefix(7, 4),
        dtypes=(F16, F16),
    )
    expected, learned = problem.expected(), problem.factors()
    stretch(problem)
    known = [n for n, t in enumerate(learned) if t.is_contiguous()]  # a gradient of 8 GB teaches no more
    plan = Plan([problem.job()], [learned[n] for n in known], "ieee")
    assert not plan.rejected
    plan.apply()
    assert error(torch.stack(problem.outs), expected[0]) <= 2e-3 * expected[0].abs().max()
    grads = [torch.zeros_like(learned[n]) for n in known]
    pull_back(plan, [problem], problem.grads, grads)
    for n, grad in zip(known, grads, strict=True):
        assert error(grad, expected[1][n]) <= 1e-5 * expected[1][n].abs().max()


def test_gradients_of_sources_beyond_two_to_the_31_elements() -> None:
    problem = Problem((1, 1), diagonal(5, 3), prefix(7, 4))
    expected = problem.expected()[2]
    d_source = far(torch.ones(3, 4, device=DEVICE))
    plan = Plan([problem.job()], problem.factors(), "ieee", d_sources=[[d_source]])
    assert not plan.rejected
    pull_back(plan, [problem], problem.grads, [torch.zeros_like(t) for t in problem.factors()], [d_source])
    assert error(d_source[None] - 1, expected) <= 1e-5 * expected.abs().max()


@pytest.mark.usefixtures("block_shapes")
@pytest.mark.parametrize("which", range(4), ids=["D", "C of rows", "scale of rows", "C of columns"])
def test_partial_sums_beyond_two_to_the_31_elements(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one factor begin 2^31 elements into their memory."""
    problem = Problem((2, 3), diagonal(7, 5), prefix(6, 4))
    factor = problem.factors()[which]
    skipped = 2**31 // factor.numel() + 1
    place, totals = Wave.sum_of, launching.totals

    def sum_of(self: Wave, sums: int, count: int, n: int) -> tuple[int, int]:
        self.sums.setdefault(sums, skipped)
        return place(self, sums, count, n)

    def later(*arguments: Any) -> list[Any]:
        found = totals(*arguments)
        assert len(found) == 1 and found[0].parts > skipped
        return [t._replace(sums_offset=skipped * t.n, parts=t.parts - skipped) for t in found]

    monkeypatch.setattr(Wave, "sum_of", sum_of)
    monkeypatch.setattr(launching, "totals", later)
    plan = Plan([problem.job()], [factor], "ieee")
    grad = torch.zeros_like(factor)
    pull_back(plan, [problem], problem.grads, [grad])
    want = problem.expected()[1][which]
    assert error(grad, want) <= 1e-5 * want.abs().max()
