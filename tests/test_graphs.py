"""CUDA graphs without a GPU: a capture that records launches in place of making them, and replays."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import models
import pytest
import torch
from torch import Tensor

import ligo_fast as lf
from ligo_fast import ops
from ligo_fast.compute import library
from ligo_fast.compute.backend_triton import Plan
from ligo_fast.kernels import graphs
from ligo_fast.kernels.launch import Launch
from ligo_fast.maps import PrefixDiagonal

DEVICE = os.environ["LIGO_FAST_TEST_DEVICE"]
pytestmark = pytest.mark.usefixtures("on_kernels")


class Graph:
    """What a CUDA graph has of these calls: copies from pinned memory, launches, memory of its own."""

    def __init__(self) -> None:
        self.nodes: list[Callable[[], object]] = []
        self.memory: list[Tensor] = []

    def capture(self, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> None:
        """Record what `run` would make a GPU do; nothing of it is done."""
        copy, empty = Tensor.copy_, torch.empty

        def copied(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            if not non_blocking:
                return copy(to, source)
            self.nodes.append(lambda: copy(to, source))
            return to

        def own(*size: Any, **options: Any) -> Tensor:
            self.memory.append(empty(*size, **options))
            return self.memory[-1]

        call = Launch.__call__

        def launched(launch: Launch, pointers: Tensor) -> None:
            self.nodes.append(lambda: call(launch, pointers))

        with monkeypatch.context() as patch:
            patch.setattr(graphs, "is_capturing", lambda device: True)
            patch.setattr(Tensor, "copy_", copied)
            patch.setattr(torch, "empty", own)
            patch.setattr(Launch, "__call__", launched)
            run()
        assert self.nodes

    def replay(self) -> None:
        for t in self.memory:
            t.view(torch.uint8).fill_(0x7F)  # others of the graph's own calls had it in between
        for node in self.nodes:
            node()


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory for addresses as there is after a call on a GPU."""
    monkeypatch.setattr(graphs, "_pinned", [torch.empty(graphs.LISTS, dtype=torch.int64, device="cpu")])
    monkeypatch.setattr(graphs, "_used", 0)
    monkeypatch.setattr(graphs, "_kept", {})
    yield


def operator() -> lf.GrowthOperator:
    small, large = (
        models.build("gpt2-lm", n, n_layer=1, n_embd=4 + 4 * n, n_head=1 + n, n_inner=6 + n).to(DEVICE)
        for n in range(2)
    )
    op = lf.GrowthOperator(small, large, precision="ieee")
    for p in op.parameters():
        p.grad = torch.zeros_like(p)
    return op


def give(op: lf.GrowthOperator, seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    given = [torch.randn(p.shape, generator=rng).to(p) for p in op.large.parameters()]
    for p, g in zip(op.large.parameters(), given, strict=True):
        p.grad = g
    return given


def results(op: lf.GrowthOperator, work: str) -> list[Tensor]:
    return [p.detach() if work == "apply_" else p.grad for p in _written(op, work)]  # type: ignore[misc]


def _written(op: lf.GrowthOperator, work: str) -> list[Tensor]:
    return list((op.large if work == "apply_" else op).parameters())


@pytest.mark.parametrize("work", ["apply_", "pullback"])
def test_a_replay_does_what_the_captured_call_would_have(
    work: str, pinned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the first call of the other kind, one with other gradients, and the plan's end."""
    op, graph = operator(), Graph()
    call = getattr(op, work)
    read = give(op, 1)
    call()
    want = [t.clone() for t in results(op, work)]
    graph.capture(monkeypatch, call)

    give(op, 2)  # the graph's gradients stay in `read`
    (op.pullback if work == "apply_" else op.apply_)()
    op.pullback()
    plan: Plan = op._execution.compiled.plan.plan
    plan.workspace.fill_(0x7F)
    plan.slots.pointers.zero_()
    written = results(op, work)
    op._execution.compiled.plan = None
    del plan
    gc.collect()
    for t in written:
        t.fill_(torch.nan if work == "apply_" else 0.0)
    for _ in range(2):
        graph.replay()
        if work == "apply_":
            assert all(torch.equal(a, b) for a, b in zip(written, want, strict=True))
    if work == "pullback":
        assert all(torch.equal(a, b + b) for a, b in zip(written, want, strict=True))
    assert len(read) == len(list(op.large.parameters()))


def test_after_a_capture_everything_is_made_again(pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay writes factors, and torch does not count that."""
    op = operator()
    give(op, 1)
    for _ in range(2):
        op.apply_()
        op.pullback()
    Graph().capture(monkeypatch, op.apply_)
    op.apply_()
    for p in op.parameters():
        p.data.add_(0.5)
        p.grad = None
    op.pullback()
    found = results(op, "pullback")
    other = operator()
    other.load_state_dict(op.state_dict())
    give(other, 1)
    other.pullback()
    assert all(torch.equal(a, b) for a, b in zip(found, results(other, "pullback"), strict=True))


def test_calls_after_a_capture_are_what_they_were(pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    c = torch.randn(2, 3, device=DEVICE)
    stack, depth = torch.randn(2, 3, 3, device=DEVICE), torch.randn(3, 2, device=DEVICE)
    grad, words = torch.randn(3, 5, 5, device=DEVICE), ("prefix", "prefix", "ieee")

    def both() -> list[Tensor]:
        y = library.grow(stack, depth, [c], [c], *words)
        return [y, *library.grow_backward(grad, stack, depth, [c], [c], *words, True)]

    want = both()
    Graph().capture(monkeypatch, both)
    assert all(torch.equal(a, b) for a, b in zip(both(), want, strict=True))


@pytest.mark.parametrize("work", ["apply_", "pullback"])
def test_the_first_call_cannot_be_captured(work: str, pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator()
    give(op, 1)
    if work == "pullback":
        op.apply_()
    monkeypatch.setattr(graphs, "is_capturing", lambda device: True)
    with pytest.raises(lf.GrowthError, match="call once before the capture"):
        getattr(op, work)()
    monkeypatch.undo()
    monkeypatch.setenv("LIGO_FAST_BACKEND", "triton")
    getattr(op, work)()
    assert all(bool(t.isfinite().all()) for t in results(op, work))


def test_the_op_may_be_captured_again_and_again(pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer of a model calls it with tensors of one shape; the plan may have left the cache since."""
    maps = PrefixDiagonal(torch.randn(2, 3, device=DEVICE)), PrefixDiagonal(torch.randn(1, 4, device=DEVICE))
    depth = torch.randn(3, 2, device=DEVICE)
    stacks = [torch.randn(2, 3, 4, device=DEVICE) for _ in range(2)]
    outs = [torch.empty(3, 5, 5, device=DEVICE) for _ in stacks]

    def run() -> None:
        for stack, out in zip(stacks, outs, strict=True):
            ops.grow(stack, depth, *maps, out=out, precision="ieee")

    run()
    want = [out.clone() for out in outs]
    graph = Graph()
    graph.capture(monkeypatch, run)
    ops.grow(torch.zeros_like(stacks[0]), depth, *maps, precision="ieee")
    library._plans.clear()
    gc.collect()
    for out in outs:
        out.fill_(torch.nan)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(outs, want, strict=True))


def test_pinned_memory_has_an_end(pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator()
    op.apply_()
    monkeypatch.setattr(graphs, "_used", graphs.LISTS - 1)
    with pytest.raises(lf.GrowthError, match="no pinned memory is left"):
        Graph().capture(monkeypatch, op.apply_)


def test_there_is_pinned_memory_after_a_call_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_pinned", [])
    graphs.prepare(torch.device("cpu"))
    assert graphs._pinned == []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **options: empty(*size, **options))
    gpu = torch.device("cuda")
    for used, pieces in ((0, 1), (graphs.LISTS // 2, 1), (graphs.LISTS // 2 + 1, 2)):
        monkeypatch.setattr(graphs, "_used", used)
        graphs.prepare(gpu)
        assert len(graphs._pinned) == pieces and graphs._used == (0 if pieces == 2 else used)
