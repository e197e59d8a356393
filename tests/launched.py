"""What Triton's launcher hands to the driver; run by test_launch.py in a process with no interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import triton
from torch import Tensor, nn
from triton import knobs

import ligo_fast as lf
from benchmarks import models, stub
from benchmarks.stub import Stub
from ligo_fast.bench.cases import CASES
from ligo_fast.kernels import graphs


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    return Stub(tmp_path_factory.mktemp("driver"))


class Calls:
    """The two calls of an operator, and how often Triton looked at a launch's arguments."""

    def __init__(self, driver: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver, self.looks, look = driver, 0, triton.JITFunction.run

        def counted(kernel: object, *arguments: object, **options: object) -> object:
            self.looks += 1
            return look(kernel, *arguments, **options)

        monkeypatch.setattr(triton.JITFunction, "run", counted)
        small, large = models.build(CASES["tiny-bert"])
        self.op, self.large = lf.GrowthOperator(small, large), large
        self.give(torch.zeros_like)
        self.both()

    def give(self, gradient: Callable[[nn.Parameter], Tensor]) -> None:
        for p in self.large.parameters():
            p.grad = gradient(p)

    def both(self) -> tuple[list[tuple[int, ...]], int]:
        """The launches of an `apply_` and a pull-back, and how many of them Triton looked at."""
        before, self.looks = self.driver.launches, 0
        self.op.apply_()
        self.op.pullback()
        return self.driver.last(self.driver.launches - before), self.looks


@pytest.fixture
def finding(driver: Stub, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Calls that find in the workspace what the call before left there."""
    monkeypatch.setenv("LIGO_FAST_BACKEND", "triton")
    return Calls(driver, monkeypatch)


@pytest.fixture
def calls(finding: Calls, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Calls that make everything."""
    monkeypatch.setattr("ligo_fast.compute.backend_triton.Plan._now", lambda plan, launches: None)
    return finding


def unaligned(p: nn.Parameter) -> Tensor:
    return torch.zeros(p.numel() + 1)[1:].view_as(p)


def test_launches_are_what_triton_makes_of_them(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ligo_fast.kernels.launch.KNOWN", False)  # another release of Triton looks every time
    looked, looks = calls.both()
    assert looks == len(looked) > 10
    assert all(row[stub.GRID] > 0 and row[stub.GRID + 1 : stub.THREADS] == (1, 1) for row in looked)
    assert len({row[stub.FUNCTION] for row in looked}) > 5
    assert len({row[stub.PARAMETERS] for row in looked}) == 1  # the addresses of all tensors
    monkeypatch.setattr("ligo_fast.kernels.launch.KNOWN", True)
    for _ in range(2):
        assert calls.both() == (looked, 0)


def test_a_pull_back_that_finds_what_was_left_has_the_other_launches(
    finding: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ligo_fast.compute.backend_triton.Plan._now", lambda plan, launches: None)
        whole, _ = finding.both()
    finding.both()
    short, looks = finding.both()
    applied = len(finding.op._execution.compiled.plan.plan.apply_launches)
    less = len(whole) - len(short)
    assert 0 < less < len(whole) - applied and looks == 0
    assert short == whole[:applied] + whole[applied + less :]


def test_gradients_that_are_not_aligned_take_other_kernels(calls: Calls) -> None:
    first, _ = calls.both()
    applied = len(calls.op._execution.compiled.plan.plan.apply_launches)
    calls.give(unaligned)
    other, looks = calls.both()
    assert looks == len(other) - applied and other[:applied] == first[:applied]
    functions = [{row[stub.FUNCTION] for row in rows[applied:]} for rows in (first, other)]
    assert functions[1] - functions[0]
    assert calls.both() == (other, 0)
    calls.give(torch.zeros_like)
    assert calls.both() == (first, 0)


def test_launches_go_to_the_stream_that_is_current(calls: Calls, driver: Stub) -> None:
    first, _ = calls.both()
    driver.stream = 7
    try:
        for looks in (len(first), 0):
            elsewhere, looked = calls.both()
            assert {row[stub.STREAM] for row in elsewhere} == {7} and looked == looks
    finally:
        driver.stream = 0
    assert calls.both()[0] == first


def test_new_memory_for_the_addresses_is_seen(calls: Calls) -> None:
    plan = calls.op._execution.compiled.plan.plan
    plan.slots.pointers = plan.slots.pointers.clone()
    launches, looks = calls.both()
    assert looks == len(launches)
    assert {row[stub.PARAMETERS] for row in launches} == {plan.slots.pointers.data_ptr()}


def test_a_captured_call_has_addresses_of_its_own(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = calls.both()
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "is_capturing", lambda device: True)
        patch.setattr(graphs, "_pinned", [torch.empty(graphs.LISTS, dtype=torch.int64)])
        captured, _ = calls.both()
    kept = [row[: stub.PARAMETERS] + row[stub.PARAMETERS + 1 :] for row in captured]
    assert kept == [row[: stub.PARAMETERS] + row[stub.PARAMETERS + 1 :] for row in first]
    assert not {row[stub.PARAMETERS] for row in captured} & {row[stub.PARAMETERS] for row in first}
    assert calls.both() == (first, 0)


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Kernels of the launches that Triton tells a profiler of."""
    names: list[str] = []

    def tell(metadata: object) -> None:
        names.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(tell)
    yield names
    knobs.runtime.launch_enter_hook.remove(tell)


def test_a_profiler_is_told(calls: Calls, told: list[str]) -> None:
    first, _ = calls.both()
    told.clear()
    again, _ = calls.both()
    assert again == first and len(told) == len(first)
    assert {"product_kernel", "forward_kernel", "adjoint_kernel", "total_kernel"} >= set(told)
