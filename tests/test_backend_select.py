"""Training-free growth of whole models: the one compiled call against torch, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import models
import pytest
import torch
from torch import nn

import ligo_fast as lf
from ligo_fast import methods
from ligo_fast.compute.backend_select import Plan, why_not_select
from ligo_fast.maps import Dense
from ligo_fast.native import cpu

pytestmark = pytest.mark.skipif(cpu.extension is None, reason=f"the extension is {cpu.state}")
METHODS = ["copy+stack", "net2net+stack", "aki+stack", "tile+interpolate", "pad+interpolate", "net2net+zero"]


def grown(name: str, method: str, dtype: torch.dtype = torch.float32) -> tuple[lf.GrowthOperator, nn.Module]:
    small = models.build(name, dtype=dtype)
    large = models.build_wider(name, 5, dtype, models.TWICE if method.startswith("tile") else models.WIDER)
    op = lf.GrowthOperator(small, large, method, seed=0)
    op.apply_()
    return op, large


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "llama-tied", "vit-class"])
def test_the_compiled_call_is_torch_to_the_bit(
    name: str, method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, large = grown(name, method, dtype)
    plan = ours._execution.compiled.selection
    assert plan is not None and plan.covered
    # padding before a LayerNorm adds units that are means of old ones: no selections
    assert not plan.rejected or (method.startswith("pad") and "PrefixDiagonal" in str(plan.rejected))
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    theirs, want = grown(name, method, dtype)
    assert theirs._execution.compiled.selection is None
    for (n, p), q in zip(large.named_parameters(), want.parameters(), strict=True):
        assert torch.equal(p, q), n


def test_half_to_single_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dtypes in one pair of models."""
    results = []
    for backend in ("auto", "torch"):
        monkeypatch.setenv("LIGO_FAST_BACKEND", backend)
        op, large = grown("gpt2-lm", "copy+stack")
        for p in op.large.parameters():
            p.data = p.data.half()
        plan = Plan(op.pieces, op.small, op.large)
        assert len(plan.covered) == len(op.pieces)
        plan.apply()
        results.append([p.detach().clone() for p in large.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_moved_or_replaced_parameter_is_found() -> None:
    op, large = grown("gpt2-lm", "net2net+stack")
    plan = op._execution.compiled.selection
    want = {n: p.detach().clone() for n, p in large.named_parameters()}
    op.apply_()
    assert op._execution.compiled.selection is plan, "made once"
    for p in large.parameters():
        p.data = torch.full_like(p, torch.nan)
    op.apply_()
    assert op._execution.compiled.selection is not plan
    assert all(torch.equal(p, want[n]) for n, p in large.named_parameters())
    for module in large.modules():
        for key, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[key] = nn.Parameter(torch.full_like(p, torch.nan))
    large.tie_weights()  # type: ignore[operator]
    op.apply_()
    assert all(torch.equal(p, want[n]) for n, p in large.named_parameters())
    with torch.no_grad():
        for p in op.small.parameters():
            p.mul_(2.0)
    op.apply_()
    assert any(not torch.equal(p, want[n]) for n, p in large.named_parameters())


def test_a_copy_of_the_operator_writes_its_own_models() -> None:
    op, large = grown("gpt2-lm", "copy+stack")
    twin = copy.deepcopy(op)
    for p in large.parameters():
        p.data.fill_(7.0)
    twin.apply_()
    assert all(bool((p == 7.0).all()) for p in large.parameters())


def test_a_resized_parameter_is_an_error() -> None:
    op, large = grown("gpt2-lm", "copy+stack")
    p = next(large.parameters())
    p.data = p.data[:, :-1].clone()
    with pytest.raises(lf.GrowthError, match="is now"):
        op.apply_()


def test_learned_pieces_are_not_for_it() -> None:
    op, _ = grown("gpt2-lm", "ligo")
    plan = op._execution.compiled.selection
    assert plan is not None and not plan.covered
    assert "learned factors" in plan.rejected.values()


@pytest.mark.parametrize("method", ["random+stack", "random+random", "random+identity"])
def test_new_units_keep_what_the_target_has(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, large = grown("gpt2-lm", method)
    plan = ours._execution.compiled.selection
    assert plan is not None and not plan.rejected and any(piece.keep for piece in ours.pieces)
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    _, want = grown("gpt2-lm", method)
    assert all(torch.equal(p, q) for p, q in zip(large.parameters(), want.parameters(), strict=True))


def test_new_units_in_between_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where head_dim grows, the old units of q are not its first ones."""
    wide = {"n_embd": 16, "n_head": 2, "n_layer": 3, "n_inner": 20}
    small, results = models.build("gpt2-lm"), []
    for backend in ("auto", "torch"):
        monkeypatch.setenv("LIGO_FAST_BACKEND", backend)
        large = models.build("gpt2-lm", 1, **wide)
        op = lf.GrowthOperator(small, large, "random+stack", seed=0)
        op.apply_()
        results.append([p.detach().clone() for p in large.parameters()])
        if backend == "auto":
            plan = op._execution.compiled.selection
            assert plan is not None and plan.covered
            assert any("behind the old ones" in why for why in plan.rejected.values())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.fixture
def mean_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose large layers are means of `of` neighbouring small ones."""

    def mean(family: Any, context: Any, *, of: int = 2) -> Dense:
        m = torch.zeros(family.large, family.small, dtype=torch.float64)
        for layer in range(family.large):
            for j in {(layer + n) % family.small for n in range(of)}:
                m[layer, j] = 1 / min(of, family.small)
        return Dense(m)

    monkeypatch.setitem(methods.DEPTH, "mean", methods.Method("mean", mean))


@pytest.mark.parametrize("name", ["gpt2-lm", "llama-tied"])
def test_layers_that_are_sums_of_a_few(name: str, mean_depth: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exact as torch (2x) against float64, and covered."""
    ours, large = grown(name, "net2net+mean")
    plan = ours._execution.compiled.selection
    assert plan is not None and not plan.rejected and plan.sums.items
    small = models.build(name).double()
    exact = models.build_wider(name, 5, torch.float64)
    lf.GrowthOperator(small, exact, "net2net+mean", seed=0).apply_()
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    _, plain = grown(name, "net2net+mean")
    for p, q, e in zip(large.parameters(), plain.parameters(), exact.parameters(), strict=True):
        error, allowed = ((t.detach() - e.detach()).norm() for t in (p, q))
        assert error <= 2 * allowed


def test_layers_that_are_sums_of_many_stay_with_torch(mean_depth: None) -> None:
    small, large = (models.build("gpt2-lm", n_layer=layers) for layers in (6, 8))
    op = lf.GrowthOperator(small, large, "copy+mean", of=5)
    op.apply_()
    plan = op._execution.compiled.selection
    assert plan is not None and any("more than 4" in why for why in plan.rejected.values())


def test_overlapping_models_stay_with_torch() -> None:
    small, large = models.build("gpt2-lm"), models.build_wider("gpt2-lm", 5)
    op = lf.GrowthOperator(small, large, "copy+stack")
    weights = dict(small.named_parameters())
    name = next(n for n in weights if n.endswith("wte.weight"))
    storage = dict(large.named_parameters())[name].data
    weights[name].data = storage[: weights[name].shape[0], : weights[name].shape[1]]
    plan = Plan(op.pieces, small, large)
    assert not plan.covered and any("overlap" in why for why in plan.rejected.values())


def test_why_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not_select(torch.device("cpu")) == ""
    assert "meta" in why_not_select(torch.device("meta"))
    monkeypatch.setattr(cpu, "extension", None)
    assert why_not_select(torch.device("cpu")) == cpu.state
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    assert "LIGO_FAST_BACKEND" in why_not_select(torch.device("cpu"))
