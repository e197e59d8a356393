"""Models, factors and moments are freed when their last name goes: no cycle waits for Python's collector."""

import gc
import weakref

import pytest
import torch
from models import build, grow_copy, loss_of, make_batch

import ligo_fast as lf

BATCH = make_batch("gpt2-lm")
SIZES = {"width": 12, "depth": 3, "n_inner": 20}
LEARNS = {"method": "ligo", "data": [BATCH], "steps": 2}


@pytest.fixture(autouse=True)
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def refs(*models):
    """Of the models, and of all that takes memory in them."""
    return [weakref.ref(t) for m in models for t in (m, *m.parameters())]


def none_is_left(seen):
    return not [r for r in seen if r() is not None]


def test_a_model_alone_is_freed():
    small = build("gpt2-lm")
    loss_of(small, BATCH).backward()
    seen = refs(small)
    del small
    assert none_is_left(seen), "otherwise nothing here can pass"


@pytest.mark.filterwarnings("ignore:method 'ligo' without data")
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"method": "net2net+stack", "noise": 0.5},
        {"method": "pad+zero"},
        {"method": "aki+interpolate"},
        {"method": "random+identity"},
        {"method": "ligo"},
        LEARNS,
        {**LEARNS, "release_grads": True},
    ],
    ids=["default", "noise", "pad", "aki", "random", "initial ligo", "learned", "learned, release"],
)
def test_grow(how):
    small = build("gpt2-lm")
    large = lf.grow(small, **SIZES, **how)
    seen = refs(small), refs(large)
    del small
    assert none_is_left(seen[0])
    loss_of(large, BATCH).backward()
    del large
    assert none_is_left(seen[1])


@pytest.mark.parametrize("uses", ["apply", "pull back", "functional", "report", "cast"])
def test_an_operator(uses):
    small = build("gpt2-lm")
    large = grow_copy(small)
    op = lf.GrowthOperator(small, large)
    op.apply_()
    if uses == "pull back":
        loss_of(large, BATCH).backward()
        op.pullback()
    elif uses == "functional":
        torch.func.functional_call(large, op(), (), BATCH).loss.backward()
    elif uses == "report":
        assert str(op) and lf.certify(small, large, BATCH) is not None
    elif uses == "cast":
        op.double()
        op.apply_()
    seen = [*refs(small, large), weakref.ref(op)]
    del small, large, op
    assert none_is_left(seen)


@pytest.mark.usefixtures("on_kernels")
def test_an_operator_on_kernels(device):
    small = build("gpt2-lm").to(device)
    large = grow_copy(small)
    op = lf.GrowthOperator(small, large)
    op.apply_()
    loss_of(large, {k: v.to(device) for k, v in BATCH.items()}).backward()
    op.pullback()
    assert op._execution.compiled.plan is not None
    seen = [*refs(small, large), weakref.ref(op)]
    del small, large, op
    assert none_is_left(seen)


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("closes", [False, True])
def test_an_optimizer(release, closes):
    small = build("gpt2-lm")
    large = grow_copy(small)
    op = lf.GrowthOperator(small, large)
    opt = lf.GrowthOptimizer(op, lr=0.1, release_grads=release)
    for _ in range(2):
        loss_of(large, BATCH).backward()
        opt.step()
        opt.zero_grad()
    if closes:
        opt.close()
    moments = [t for state in opt.inner.state.values() for t in state.values()]
    seen = [*map(weakref.ref, moments), weakref.ref(op)]
    del op, opt, moments
    assert seen and none_is_left(seen)
    seen = refs(small)
    del small
    assert none_is_left(seen)
    large.zero_grad()
    loss_of(large, BATCH).backward()
    seen = refs(large)
    del large
    assert none_is_left(seen)


def test_a_hand_over():
    small = build("gpt2-lm")
    large = grow_copy(small)
    opt = lf.GrowthOptimizer(lf.GrowthOperator(small, large), lr=0.1)
    lf.GrowthSchedule(opt, learn=1, steps=3)
    loss_of(large, BATCH).backward()
    opt.step()
    opt.hand_over(torch.optim.AdamW(large.parameters(), 1e-3))
    loss_of(large, BATCH).backward()
    opt.step()
    seen = [*refs(small, large), weakref.ref(opt.op)]
    del small, large, opt
    assert none_is_left(seen)


@pytest.mark.parametrize("release", [False, True])
def test_learn(release):
    small = build("gpt2-lm")
    large = grow_copy(small)
    op = lf.GrowthOperator(small, large)
    lf.learn(op, [BATCH], 2, release_grads=release)
    seen = [*refs(small, large), weakref.ref(op)]
    del small, large, op
    assert none_is_left(seen)


def test_a_grown_optimizer_state():
    small = build("gpt2-lm")
    old = torch.optim.AdamW(small.parameters(), 1e-3)
    loss_of(small, BATCH).backward()
    old.step()
    large, op = lf.grow(small, **SIZES, method="net2net+stack", return_operator=True)
    new = torch.optim.AdamW(large.parameters(), 1e-3)
    lf.grow_optimizer(op, old, new)
    moments = [t for state in new.state.values() for t in state.values()]
    seen = [*refs(small, large), *map(weakref.ref, moments), weakref.ref(op)]
    del small, old, large, op, new, moments
    assert none_is_left(seen)


def test_a_saved_operator(tmp_path):
    small = build("gpt2-lm")
    large = grow_copy(small)
    op = lf.GrowthOperator(small, large)
    lf.save_operator(op, tmp_path / "op.safetensors")
    again = lf.load_operator(tmp_path / "op.safetensors", small, large)
    again.apply_()
    seen = [*refs(small, large), weakref.ref(op), weakref.ref(again)]
    del small, large, op, again
    assert none_is_left(seen)


def test_a_small_model_in_files(saved):
    folder, small = saved(build("gpt2-lm"))
    large = grow_copy(build("gpt2-lm"))
    op = lf.GrowthOperator(small, large, source=folder)
    lf.learn(op, [BATCH], 2, release_grads=True)
    seen = [*refs(small, large), weakref.ref(op)]
    del small, large, op
    assert none_is_left(seen)
