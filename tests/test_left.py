"""What a call leaves in the workspace: a pull-back finds it there, but never what is not so any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from test_kernels import (
    BF16,
    DEVICE,
    F16,
    F32,
    KINDS,
    Problem,
    diagonal,
    heads,
    prefix,
    tensors_of,
)
from test_kernels import right_products as right_products
from torch import Tensor

import ligo_fast as lf
from ligo_fast.bench.cases import CASES
from ligo_fast.bench.measure import fewest
from ligo_fast.compute.backend_triton import Plan
from ligo_fast.compute.backends import PiecePlan
from ligo_fast.kernels.blend import BlendLaunch
from ligo_fast.kernels.expand import ProductLaunch
from ligo_fast.kernels.launch import Launches
from ligo_fast.maps import Identity, Map


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many launches each call had."""
    counts: list[int] = []
    call = Launches.__call__

    def counted(launches: Launches, pointers: Tensor) -> None:
        counts.append(len(launches))
        call(launches, pointers)

    monkeypatch.setattr(Launches, "__call__", counted)
    return counts


class Growth:
    """A plan that keeps, and its problem."""

    def __init__(self, problem: Problem, precision: str = "ieee", **options: Any) -> None:
        self.problem, self.precision = problem, precision
        self.plan = Plan([problem.job()], problem.factors(), precision, keeps=True, **options)

    def apply(self) -> None:
        assert self.plan.bind(*tensors_of([self.problem]))
        self.plan.apply()

    def gradients(self, plan: Plan | None = None) -> list[Tensor]:
        """By this plan, or by one that has everything to make."""
        plan, found = plan or self.plan, [torch.zeros_like(t) for t in self.problem.factors()]
        assert plan.bind(*tensors_of([self.problem]), self.problem.grads)
        plan.pullback(found)
        return found

    def expected(self) -> list[Tensor]:
        with torch.no_grad():
            return self.gradients(Plan([self.problem.job()], self.problem.factors(), self.precision))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("rows", "cols", "options"),
    [
        (prefix(12, 8), diagonal(10, 8), {}),  # BR of BL
        (diagonal(9, 8), prefix(12, 8), {}),  # BR of TR
        (heads(6, 3, 8), prefix(12, 8), {}),
        (prefix(12, 8), heads(6, 3, 8), {"precision": "bf16", "dtypes": (BF16, BF16)}),
        (prefix(48, 24), prefix(56, 24), {"precision": "bf16", "dtypes": (BF16, BF16)}),
        (KINDS["dense"](12, 8), prefix(12, 8), {"precision": "tf32"}),
        (prefix(40, 32), prefix(64, 32), {"depth": Identity(2)}),  # the outs are the arrays
        (prefix(40, 32), prefix(64, 32), {"depth": Identity(2), "dtypes": (F32, F16)}),
    ],
)
def test_gradients_are_the_same_to_the_bit(
    rows: Map, cols: Map, options: dict[str, Any], launched: list[int]
) -> None:
    precision = options.pop("precision", "ieee")
    problem = Problem((2, 2 if "depth" in options else 3), rows, cols, **options)
    growth = Growth(problem, precision)
    want = growth.expected()
    assert same(growth.gradients(), want)
    whole = launched[-1]
    growth.apply()
    assert same(growth.gradients(), want)
    assert launched[-1] < whole or "depth" in options
    growth.apply()
    growth.plan.workspace.fill_(0xFF)  # what was found there is not made again
    found = growth.gradients()
    assert same(found, want) == (launched[-1] == whole)


def written(growth: Growth) -> None:
    with torch.no_grad():
        growth.problem.sources[0].mul_(2)


def learned(growth: Growth) -> None:
    with torch.no_grad():
        growth.problem.factors()[-1].add_(1)


def stepped(growth: Growth) -> None:
    """By an optimizer whose kernels count no writes."""

    class Fused(torch.optim.Optimizer):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                p.data.add_(1)

    Fused([growth.problem.factors()[-1]], {}).step()


def moved(growth: Growth) -> None:
    """A source is another tensor."""
    growth.problem.sources[0].data = growth.problem.sources[0].data + 1


def given_back(growth: Growth) -> None:
    growth.plan.pool.free()
    growth.plan.pool.reserve(1 << 20)
    growth.plan.workspace.fill_(0xFF)


def only_bound(growth: Growth) -> None:
    """New weights were looked at for an `apply` that was never made."""
    written(growth)
    assert growth.plan.bind(*tensors_of([growth.problem]))


def seen_in_vain(growth: Growth) -> None:
    """It moved, and was looked at beside one that does not fit."""
    moved(growth)
    sources, factors, outs = tensors_of([growth.problem])
    assert not growth.plan.bind([*sources[:-1], sources[-1][:1]], factors, outs)


CHANGES = [written, learned, stepped, moved, given_back, only_bound, seen_in_vain]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_what_changed_is_made_again(change: Callable[[Growth], None], launched: list[int]) -> None:
    growth = Growth(Problem((2, 3), prefix(12, 8), prefix(12, 8)))
    growth.gradients()
    whole = launched[-1]
    for _ in range(2):
        growth.apply()
        assert same(growth.gradients(), growth.expected())
    change(growth)
    want = growth.expected()
    assert same(growth.gradients(), want) and launched[-1] == whole
    assert same(growth.gradients(), want) and launched[-1] < whole, "left by the pull-back"
    change(growth)
    growth.apply()
    assert same(growth.gradients(), growth.expected()) and launched[-1] <= whole


@pytest.mark.usefixtures("block_shapes")
def test_a_call_that_failed_left_nothing(launched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    growth = Growth(Problem((2, 3), prefix(12, 8), prefix(12, 8)))
    want = growth.expected()
    growth.gradients()
    whole, call = launched[-1], Launches.__call__
    growth.apply()

    def broken(launches: Launches, pointers: Tensor) -> None:
        growth.plan.workspace.fill_(0xFF)
        raise RuntimeError("no launch")

    monkeypatch.setattr(Launches, "__call__", broken)
    with pytest.raises(RuntimeError, match="no launch"):
        growth.apply()
    monkeypatch.setattr(Launches, "__call__", call)
    assert same(growth.gradients(), want) and launched[-1] == whole


def test_outs_that_lie_otherwise_left_other_arrays(launched: list[int]) -> None:
    """Where an array was the out itself, and with other outs is not."""
    problem = Problem((2, 2), prefix(40, 32), prefix(64, 32), depth=Identity(2), dtypes=(F32, F32))
    growth = Growth(problem)
    for _ in range(2):
        growth.apply()
        assert same(growth.gradients(), growth.expected())
    for outs in (problem.outs, problem.bases[1]):
        for n, t in enumerate(outs):
            outs[n] = torch.zeros(t.numel() + 1, device=DEVICE)[1:].view_as(t)
    growth.apply()
    assert same(growth.gradients(), growth.expected())


@pytest.mark.usefixtures("block_shapes")
def test_several_waves_leave_nothing(launched: list[int]) -> None:
    growth = Growth(Problem((2, 3), prefix(12, 8), prefix(12, 8)), workspace=1)
    for _ in range(2):
        growth.apply()
        assert same(growth.gradients(), growth.expected())
    assert growth.plan.pullback_launches.short is None


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.SGD])
def test_every_step_of_learning_finds_it(
    inner: Any, on_kernels: None, launched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against steps that make all of it again."""
    results = []
    for keeps in (True, False):
        small, large = (m.to(DEVICE) for m in (models.build("gpt2-lm"), models.build_wider("gpt2-lm", 3)))
        op = lf.GrowthOperator(small, large, "ligo", seed=0, precision="ieee")
        optimizer = lf.GrowthOptimizer(op, inner, lr=1e-2)
        op._execution.compiled.plan.plan.keeps = keeps
        launched.clear()
        for _ in range(3):
            optimizer.zero_grad()
            for p in large.parameters():  # not of a loss: what torch runs for it on a GPU may differ in a bit
                p.grad = p.detach().sin()
            optimizer.step()
        results.append(({n: p.detach() for n, p in large.named_parameters()}, launched[::2]))
    (found, counts), (want, most) = results
    assert all(torch.equal(found[n], p) for n, p in want.items())
    assert counts[0] == most[0] and counts[1] == counts[2] < most[1] == most[2]


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-llama"])
def test_what_is_left_to_do_is_no_less_than_the_floor_counts(name: str) -> None:
    op = CASES[name].operator(DEVICE)
    plan = PiecePlan(op.pieces, op.small, op.large, list(op.parameters()), "ieee").plan
    assert plan is not None and plan.pullback_launches.short is not None
    whole, short = (
        sum(launch.flops for launch in launches if isinstance(launch, ProductLaunch | BlendLaunch))
        for launches in (plan.pullback_launches, plan.pullback_launches.short)
    )
    assert fewest(op, "pullback")[1] <= short < whole
