"""The kernels read nothing of the memory they work in that they did not write: it holds NaN before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_kernels import BF16, DEVICE, F32, KINDS, Problem, diagonal, error, prefix, pull_back
from test_kernels import right_products as right_products

from ligo_fast.compute.backend_triton import Plan
from ligo_fast.maps import Identity, Map


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """What torch allocates holds NaN: workspaces (as bytes), partial sums and outs."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def check(problem: Problem) -> None:
    """Each direction in a plan of its own, whose memory nothing has written to."""
    outs, gradients, _ = problem.expected()
    rounded = torch.finfo(problem.dtypes[1]).eps
    apply, pullback = (Plan([problem.job()], problem.factors(), "ieee") for _ in range(2))
    for out in problem.outs:
        out.fill_(torch.nan)
    apply.apply()
    assert error(torch.stack(problem.outs), outs) <= max(rounded, 1e-5) * outs.abs().max()
    grads = [torch.zeros_like(t) for t in problem.factors()]
    pull_back(pullback, [problem], problem.grads, grads)
    for grad, want in zip(grads, gradients, strict=True):
        assert error(grad, want) <= 2e-5 * want.abs().max()


def test_memory_is_poisoned() -> None:
    assert torch.empty(5, device=DEVICE).isnan().all()
    assert torch.empty(8, dtype=torch.uint8, device=DEVICE).view(F32).isnan().all()


@pytest.mark.parametrize("depth", [None, Identity(2)], ids=["mixed", "as it is"])
@pytest.mark.parametrize(
    ("rows", "cols"),
    [
        ("diagonal", "heads"),
        ("prefix", "dense"),
        ("heads", "heads"),
        ("identity", "groups"),
        ("dense", "diagonal"),
    ],
)
def test_every_kind_of_map(rows: str, cols: str, depth: Map | None) -> None:
    layers = (2, 3) if depth is None else (2, 2)
    check(Problem(layers, KINDS[rows](7, 5), KINDS[cols](6, 4), depth=depth))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("layers", "rows", "cols"),
    [((2, 3), (65, 33), (72, 40)), ((2, 19), (6, 4), (5, 3))],
    ids=["units", "layers"],
)
def test_sizes_beyond_a_block(
    dtype: torch.dtype, layers: tuple[int, int], rows: tuple[int, int], cols: tuple[int, int]
) -> None:
    check(Problem(layers, diagonal(*rows), prefix(*cols), dtypes=(dtype, dtype)))
