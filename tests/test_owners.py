"""A module that takes the place of another: its parameters are the model's now."""

from __future__ import annotations

import copy
import os

import models
import pytest
import torch
from torch import nn

import ligo_fast as lf
from ligo_fast.models.owners import Owners

DEVICE = os.environ["LIGO_FAST_TEST_DEVICE"]


def pair() -> tuple[nn.Module, nn.Module]:
    return models.build("gpt2-lm").to(DEVICE), models.build_wider("gpt2-lm", 3).to(DEVICE)


def replace_blocks(model: nn.Module) -> None:
    """A block and, deeper, a norm are other modules with other values."""
    blocks = model.transformer.h  # type: ignore[union-attr]
    blocks[0] = copy.deepcopy(blocks[0])  # type: ignore[index,operator]
    blocks[1].ln_1 = copy.deepcopy(blocks[1].ln_1)  # type: ignore[index]
    for p in (*blocks[0].parameters(), *blocks[1].ln_1.parameters()):  # type: ignore[index]
        p.detach().mul_(-3.0)


@pytest.mark.parametrize("backend", ["torch", "auto", "triton"])
@pytest.mark.parametrize("method", ["ligo", "net2net+stack"])
@pytest.mark.parametrize("side", ["small", "large"])
def test_replaced_modules_are_read_and_written(
    side: str, method: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGO_FAST_BACKEND", backend)
    small, large = pair()
    op = lf.GrowthOperator(small, large, method, seed=1)
    op.apply_()
    replace_blocks(small if side == "small" else large)
    op.apply_()
    found = models.snapshot(large)
    fresh = copy.deepcopy(large)
    again = lf.GrowthOperator(small, fresh, method, seed=1)
    again.apply_()
    for name, p in fresh.named_parameters():
        assert torch.equal(found[name], p), name


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients_of_replaced_modules_are_pulled_back(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGO_FAST_BACKEND", backend)
    small, large = pair()
    op = lf.GrowthOperator(small, large, "ligo", seed=1)
    op.apply_()
    for p in large.parameters():
        p.grad = torch.zeros_like(p)
    op.pullback()
    assert all(p.grad is not None and not p.grad.any() for p in op.parameters())
    replace_blocks(large)
    for p in large.parameters():
        p.grad = None
    block = large.transformer.h[0]  # type: ignore[union-attr,index]
    block.mlp.c_fc.weight.grad = torch.ones_like(block.mlp.c_fc.weight)
    op.pullback()
    assert any(p.grad is not None and bool(p.grad.any()) for p in op.parameters())


def test_an_optimizer_tells_of_a_replaced_module() -> None:
    small, large = pair()
    optimizer = lf.GrowthOptimizer(lf.GrowthOperator(small, large, "ligo"), lr=1e-3)
    large.transformer.ln_f = copy.deepcopy(large.transformer.ln_f)  # type: ignore[union-attr]
    batch = {k: v.to(DEVICE) for k, v in models.make_batch("gpt2-lm").items()}
    models.loss_of(large, batch).backward()
    with pytest.raises(lf.GrowthError, match=r"transformer\.ln_f\.weight .* replaced"):
        optimizer.step()


@pytest.mark.parametrize("method", ["ligo", "net2net+stack"])
def test_a_module_that_is_gone_is_an_error(method: str) -> None:
    small, large = pair()
    op = lf.GrowthOperator(small, large, method)
    op.apply_()
    before = models.snapshot(large)
    large.transformer.ln_f = nn.Identity()  # type: ignore[union-attr]
    with pytest.raises(lf.GrowthError, match=r"transformer\.ln_f\.weight of the large model is gone"):
        op.apply_()
    assert all(torch.equal(before[n], p) for n, p in large.named_parameters())


def test_a_model_is_walked_only_when_a_module_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build("gpt2-lm")
    owners = Owners(model, [n for n, _ in model.named_parameters()])
    walks = []
    monkeypatch.setattr(owners, "_find", lambda: walks.append(1))
    assert owners.hold(p for _, p in model.named_parameters()) and not walks
    model.transformer.h[0].mlp = copy.deepcopy(model.transformer.h[0].mlp)
    owners.now()
    assert walks
