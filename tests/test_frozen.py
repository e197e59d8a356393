"""Factors that are frozen (`requires_grad` False) stay as they are, whichever way the others are learned."""

from __future__ import annotations

import pytest
import torch
from models import build, build_wider, exact_rms_norm, loss_of, make_batch, same, snapshot

import ligo_fast as lf

FREEZE = {
    "depth": lambda name: name.startswith("depth/"),
    "width": lambda name: name.startswith("width/"),
    "residual": lambda name: name.startswith("width/embed/"),
    "some layers": lambda name: "/0/" in name or name.endswith("mlp.c_fc.weight/M"),
}
FORMS = {
    "shared": {},
    "dense": {"form": "dense"},
    "by target": {"per_layer": "target"},
    "by source": {"per_layer": "source"},
}


def frozen_operator(small, large, which, **options):
    """An operator some of whose factors are frozen."""
    op = lf.GrowthOperator(small, large, seed=1, **options)
    for name, p in op.named_parameters():
        p.requires_grad_(not FREEZE[which](name))
    return op


def parts(op):
    """The factors that are learned and those that are not."""
    factors = dict(op.named_parameters())
    learned = {n: p for n, p in factors.items() if p.requires_grad}
    return learned, {n: p for n, p in factors.items() if n not in learned}


def wanted(op, batch):
    """The gradients of the learned factors by autograd."""
    learned, _ = parts(op)
    loss = torch.func.functional_call(op.large, op(), (), batch).loss
    return dict(zip(learned, torch.autograd.grad(loss, list(learned.values())), strict=True))


@pytest.mark.parametrize("release", [False, True], ids=["at a step", "released"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("which", ["depth", "width", "residual"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_frozen_stays_and_the_rest_learns(dtype, which, form, release):
    small = build("gpt2-lm", dtype=dtype)
    op = frozen_operator(small, build_wider("gpt2-lm", 3, dtype), which, **FORMS[form])
    learned, frozen = parts(op)
    assert learned and frozen
    before = {n: p.detach().clone() for n, p in frozen.items()}
    opt = lf.GrowthOptimizer(op, torch.optim.AdamW, lr=0.05, weight_decay=0.1, release_grads=release)
    assert {id(p) for g in opt.inner.param_groups for p in g["params"]} == set(map(id, learned.values()))
    for step in range(2):
        batch = make_batch("gpt2-lm", seed=step)
        want = wanted(op, batch)
        loss_of(op.large, batch).backward()
        opt.step()
        bound = (1e-12 if dtype == torch.float64 else 1e-5) * max(float(g.abs().max()) for g in want.values())
        errors = {n: float((learned[n].grad - g).abs().max()) for n, g in want.items()}
        assert {n: e for n, e in errors.items() if e > bound} == {}, bound
        assert all(p.grad is None for p in frozen.values())
        opt.zero_grad()
    assert all(torch.equal(p, before[n]) for n, p in frozen.items())
    weights = snapshot(op.large)
    op.apply_()
    assert same(weights, op.large)


@pytest.mark.parametrize("release", [False, True], ids=["at a step", "released"])
@pytest.mark.parametrize("form", ["by target", "by source"])
def test_the_factors_of_some_layers_are_frozen(form, release):
    small = build("llama-lm", dtype=torch.float64)
    op = frozen_operator(small, build_wider("llama-lm", 3, torch.float64), "some layers", **FORMS[form])
    learned, frozen = parts(op)
    assert any("/1/" in n for n in learned) and any("/0/" in n for n in frozen)
    batch = make_batch("llama-lm")
    with exact_rms_norm():
        opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.05, release_grads=release)
        want = wanted(op, batch)
        loss_of(op.large, batch).backward()
        opt.step()
    for n, g in want.items():
        torch.testing.assert_close(learned[n].grad, g, rtol=1e-8, atol=1e-11, msg=n)
    assert all(p.grad is None for p in frozen.values())


def test_an_operator_whose_factors_are_all_frozen_is_refused():
    small, large = build("gpt2-lm"), build_wider("gpt2-lm", 3)
    op = lf.GrowthOperator(small, large).requires_grad_(False)
    before, n = snapshot(large), len(list(op.parameters()))
    for learn in (
        lambda: lf.GrowthOptimizer(op, lr=0.1),
        lambda: lf.GrowthOptimizer(op, lr=0.1, release_grads=True),
        lambda: lf.learn(op, [make_batch("gpt2-lm")], 1),
        op.pullback,
    ):
        with pytest.raises(lf.GrowthError, match=rf"'ligo' has no factors to learn: all {n} are frozen"):
            learn()
    assert same(before, large)


@pytest.mark.parametrize("release", [False, True], ids=["at a step", "released"])
def test_what_is_frozen_later_stops_and_what_is_freed_again_goes_on(release):
    small = build("gpt2-lm")
    op = lf.GrowthOperator(small, build_wider("gpt2-lm", 3), seed=1)
    opt = lf.GrowthOptimizer(op, lr=0.05, weight_decay=0.1, release_grads=release)
    depth = {n: p for n, p in op.named_parameters() if FREEZE["depth"](n)}

    def moved():
        before = {n: p.detach().clone() for n, p in depth.items()}
        loss_of(op.large, make_batch("gpt2-lm")).backward()
        opt.step()
        opt.zero_grad()
        return sum(not torch.equal(p, before[n]) for n, p in depth.items())

    assert moved() == len(depth)
    for p in depth.values():
        p.requires_grad_(False)
    assert moved() == 0
    for p in depth.values():
        p.requires_grad_(True)
    assert moved() == len(depth)


def test_a_state_with_other_factors_frozen_is_named():
    small = build("gpt2-lm")
    state = lf.GrowthOptimizer(lf.GrowthOperator(small, build_wider("gpt2-lm", 3)), lr=0.1).state_dict()
    op = frozen_operator(small, build_wider("gpt2-lm", 3), "depth")
    opt = lf.GrowthOptimizer(op, lr=0.1)
    before = snapshot(op.large)
    with pytest.raises(lf.GrowthError, match=r"saved with \d+ learned factors, \d+ are learned here"):
        opt.load_state_dict(state)
    assert same(before, op.large)


def test_kernels_follow_what_is_frozen(on_kernels, device):
    """Their tables are made anew: freezing changes whose gradients are added up."""
    sizes = [{"n_layer": 1 + n, "n_embd": 4 + 4 * n, "n_head": 1 + n, "n_inner": 6 + n} for n in range(2)]
    small, large = (build("gpt2-lm", n, **sizes[n]).to(device) for n in range(2))
    op = lf.GrowthOperator(small, large, seed=1)
    for p in large.parameters():
        p.grad = torch.ones_like(p)
    op.apply_()
    op.pullback()
    want = {n: p.grad.clone() for n, p in op.named_parameters()}
    for which in ("depth", "residual"):
        for n, p in op.named_parameters():
            p.grad = None
            p.requires_grad_(not FREEZE[which](n))
        op.apply_()
        op.pullback()
        learned, frozen = parts(op)
        assert all(p.grad is None for p in frozen.values())
        for n, p in learned.items():
            torch.testing.assert_close(p.grad, want[n], msg=n)
