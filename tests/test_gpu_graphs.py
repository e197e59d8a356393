"""What `make gpu-check` does to a CUDA graph between capture and replay, with a graph that is none."""

from __future__ import annotations

import contextlib

import models
import pytest
import torch
from torch import Tensor

import ligo_fast as lf
from benchmarks import gpu_timing
from benchmarks.gpu_rows import with_other_gradients


class Graph:
    """Of a call that writes what `read` holds at the time of the replay."""

    out, read = torch.zeros(2), torch.ones(2)

    def replay(self) -> None:
        self.out.copy_(self.read)


@pytest.mark.parametrize("disturbed", [False, True])
def test_a_graph_that_reads_what_is_written_later_is_noticed(
    disturbed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_timing, "_free_memory_written_over", list)
    Graph.read = torch.ones(2)

    def between() -> None:
        Graph.read.fill_(2.0 if disturbed else 1.0)

    found = gpu_timing.graph_replays(Graph().replay, Graph.out.zero_, [Graph.out], between)
    assert found == ("1 of 1 tensors differ" if disturbed else "equal")


def test_other_gradients_are_those_of_other_parameters() -> None:
    op = lf.GrowthOperator(models.build("gpt2-lm"), models.build_wider("gpt2-lm", 3))
    for n, p in enumerate(op.large.parameters()):
        p.grad = torch.full_like(p, n)

    def pulled() -> list[Tensor]:
        op.zero_grad()
        op.pullback()
        return [p.grad.clone() for p in op.parameters() if p.grad is not None]

    want = pulled()
    op.zero_grad()
    with_other_gradients(op)
    other = [p.grad for p in op.parameters() if p.grad is not None]
    assert any(not torch.equal(a, b) for a, b in zip(other, want, strict=True))
    assert all(bool((p.grad == n).all()) for n, p in enumerate(op.large.parameters()))  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(pulled(), want, strict=True))
