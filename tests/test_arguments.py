"""Arguments and methods of the wrong kind: one GrowthError that says which, and nothing is written."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models import build, make_batch, same, snapshot

import ligo_fast as lf
from ligo_fast.axes import AxisMaps
from ligo_fast.maps import Dense, PrefixDiagonal, Selection
from ligo_fast.methods import DEPTH, WIDTH, depth, width

WRONG = {
    "method": [3, ["copy", 3], None],
    "data": [3, 2.5],
    "steps": [2.5, "a", 0],
    "noise": ["a", "0.5", math.nan, math.inf, -1, None, [1, 2]],
    "seed": ["a", None, 0.5, 2**70],
}


@pytest.mark.parametrize("name, value", [(n, v) for n, values in WRONG.items() for v in values])
def test_an_argument_of_the_wrong_kind_is_named(name, value):
    small, batch = build("gpt2-lm"), make_batch("gpt2-lm")
    if name in ("data", "steps"):
        options = {"method": "ligo", "data": [batch], "steps": 1, name: value}
    else:
        options = {"method": "net2net", name: value}
    if not (name == "method" and value is None):  # the default's sign
        with pytest.raises(lf.GrowthError, match=f"^{name}="):
            lf.grow(small, width=16, **options)
    large = build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24)
    before = snapshot(large)
    name = {"data": "batches"}.get(name, name)
    with pytest.raises(lf.GrowthError, match=f"^{name}="):
        if name in ("batches", "steps"):
            lf.learn(lf.GrowthOperator(small, large), **{"batches": [batch], "steps": 1, name: value})
        else:
            lf.GrowthOperator(small, large, **{"method": "net2net", **{name: value}})
    assert same(before, large)


@pytest.mark.parametrize("seed", [-3, True, 2**64 - 1, torch.tensor(3)])
def test_seeds_that_torch_takes(seed):
    assert lf.grow(build("gpt2-lm"), width=16, seed=seed)


@pytest.mark.parametrize("size", [np.int64(16), np.int32(16), torch.tensor(16)])
def test_sizes_that_are_integers(size):
    config = lf.grow(build("gpt2-lm"), width=size, depth=size).config
    assert [config.n_embd, config.n_layer] == [16, 16] and type(config.n_embd) is int


@pytest.mark.parametrize("size", [True, np.True_, 16.0, "16", 0, -16, [16]])
@pytest.mark.parametrize("name, axis", [("width", "embed"), ("depth", "layer")])
def test_what_is_no_size(name, axis, size):
    with pytest.raises(lf.GrowthError, match=rf"^axis {axis}: .* is not a size"):
        lf.grow(build("gpt2-lm"), **{name: size})


@pytest.mark.parametrize(
    "inner, words",
    [
        ("adamw", "optimizer='adamw': an optimizer's class"),
        (torch.optim.SparseAdam, "SparseAdam .* sparse gradients"),
        (torch.optim.LBFGS, "LBFGS"),
    ],
)
@pytest.mark.parametrize("release", [False, True])
def test_what_cannot_step_the_factors(inner, words, release):
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24)
    before, op = snapshot(large), lf.GrowthOperator(small, large)
    with pytest.raises(lf.GrowthError, match=words):
        lf.GrowthOptimizer(op, inner, release_grads=release)
    assert same(before, large)
    with pytest.raises(lf.GrowthError, match=words):
        lf.grow(small, width=16, data=[make_batch("gpt2-lm")], optimizer=inner, release_grads=release)


AMOUNTS = [(n, v) for n in ("max_grad_norm", "depth_lr") for v in (-1, -0.5, math.nan, "x", [1, 2])]


@pytest.mark.parametrize("name, value", [*AMOUNTS, ("depth_lr", None), ("warmup", -3), ("warmup", "x")])
def test_amounts_that_would_learn_nothing_or_uphill(name, value):
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24)
    before, op = snapshot(large), lf.GrowthOperator(small, large)
    with pytest.raises(lf.GrowthError, match=f"^{name}="):
        lf.learn(op, [make_batch("gpt2-lm")], 1, **{name: value})
    assert same(before, large)


def test_a_gradient_norm_of_0_is_no_limit():
    learned = []
    for limit in (0, None):
        small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24)
        lf.learn(lf.GrowthOperator(small, large), [make_batch("gpt2-lm")], 3, max_grad_norm=limit)
        learned.append(snapshot(large))
    assert all(torch.equal(t, learned[1][n]) for n, t in learned[0].items())


@pytest.mark.parametrize(
    "steps",
    [{"learn": "x"}, {"learn": 2.5}, {"learn": 0}, {"learn": 3, "steps": "x"}, {"learn": 3, "warmup": -1}],
)
def test_steps_of_a_schedule(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(lf.GrowthError, match=f"^{list(steps)[-1]}="):
        lf.GrowthSchedule(optimizer, **steps)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_to_begin_with(bad):
    small = build("gpt2-lm")
    large = build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24)
    before = snapshot(large)
    with pytest.raises(lf.GrowthError, match=rf"loss of the first batch is {bad}"):
        lf.learn(
            lf.GrowthOperator(small, large), [make_batch("gpt2-lm")], 2, loss=lambda m, b: m(**b).loss * bad
        )
    assert same(before, large)


def selection(axis, size=None, offset=0, **other):
    return Selection(torch.arange(axis.large) % axis.small + offset, size or axis.small, **other)


WIDTHS = {
    "short": (
        lambda a: AxisMaps(Selection(torch.zeros(3, dtype=torch.long), a.small)),
        "out is 3 x 8, the axis asks for 16 x 8",
    ),
    "large": (lambda a: AxisMaps(selection(a, a.large)), "out is 16 x 16, the axis asks for 16 x 8"),
    "square": (
        lambda a: AxisMaps(Dense(torch.randn(a.small, a.small))),
        "out is 8 x 8, the axis asks for 16 x 8",
    ),
    "into": (
        lambda a: AxisMaps(selection(a), Dense(torch.ones(8, 8))),
        "into is 8 x 8, the axis asks for 16 x 8",
    ),
    "below": (lambda a: AxisMaps(selection(a, offset=-1)), "indices from -1 to 6, there are 0 to 7"),
    "scale": (lambda a: AxisMaps(selection(a, scale=torch.ones(3))), r"scale has shape \(3,\), \(16,\)"),
    "floats": (lambda a: AxisMaps(Selection(torch.zeros(a.large), a.small)), "index is torch.float32"),
    "nan": (
        lambda a: AxisMaps(Dense(torch.full((a.large, a.small), math.nan))),
        "128 of 128 values of M are",
    ),
    "diag": (
        lambda a: AxisMaps(PrefixDiagonal(torch.zeros(a.large - a.small, a.small), torch.ones(3))),
        r"diag has shape \(3,\), \(8,\)",
    ),
    "tensor": (lambda a: torch.randn(a.large, a.small), "a Tensor, where AxisMaps"),
    "map": (lambda a: AxisMaps(torch.randn(a.large, a.small)), "out is a Tensor, where a Map"),
    "nothing": (lambda a: None, "a NoneType, where AxisMaps"),
}
DEPTHS = {
    "long": (lambda f: Selection(torch.arange(9) % f.small, f.small), "is 9 x 2, the axis asks for 4 x 2"),
    "nan": (lambda f: Dense(torch.full((f.large, f.small), math.nan)), "8 of 8 values of M are NaN"),
    "tensor": (lambda f: torch.randn(f.large, f.small), "a Tensor, where a Map"),
}


@pytest.fixture
def method():
    """The name of a method to register, which is gone after the test."""
    yield "mine"
    WIDTH.pop("mine", None)
    DEPTH.pop("mine", None)


@pytest.mark.parametrize("make, words", WIDTHS.values(), ids=WIDTHS)
def test_what_is_no_map_of_an_axis(make, words, method):
    width(method)(lambda axis, context: make(axis))
    small = build("gpt2-lm")
    large = build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24)
    before = snapshot(large)
    with pytest.raises(lf.GrowthError, match=f"^method 'mine', axis embed: .*{words}"):
        lf.grow(small, width=16, method=method)  # where the norm's epsilon is asked for
    with pytest.raises(lf.GrowthError, match=f"^method 'mine', axis embed: .*{words}"):
        lf.GrowthOperator(small, large, method)
    assert same(before, large)


@pytest.mark.parametrize("make, words", DEPTHS.values(), ids=DEPTHS)
def test_what_is_no_map_of_the_layers(make, words, method):
    depth(method)(lambda family, context: make(family))
    with pytest.raises(lf.GrowthError, match=rf"^method 'mine', axis layer: h\.\*\.\S+ ?.*{words}"):
        lf.grow(build("gpt2-lm"), depth=4, method=("copy", method))


def pair():
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24)
    return small, large, make_batch("gpt2-lm")


def learner():
    small, large, _ = pair()
    return lf.GrowthOptimizer(lf.GrowthOperator(small, large), lr=1e-2)


KINDS = {
    "a name": (lambda: lf.grow("gpt2", width=16), "Module.* is needed, not str"),
    "no small model": (lambda: lf.GrowthOperator(None, pair()[1]), "Module.* is needed, not NoneType"),
    "no large model": (lambda: lf.GrowthOperator(pair()[0], None), "Module.* is needed, not NoneType"),
    "a config": (lambda: lf.GrowthOperator(pair()[0], pair()[1].config), "GPT2Config.*lf.grow takes"),
    "certify None": (lambda: lf.certify(pair()[0], None, pair()[2]), "Module.* is needed"),
    "a batch": (lambda: lf.certify(*pair()[:2], 5), "batch=int: a mapping"),
    "no operator": (lambda: lf.GrowthOptimizer(None), "op=NoneType: a GrowthOperator is needed"),
    "a model": (lambda: lf.GrowthOptimizer(pair()[0]), "op=GPT2LMHeadModel: a GrowthOperator"),
    "learn None": (lambda: lf.learn(None, [pair()[2]]), "op=NoneType: a GrowthOperator is needed"),
    "hand over": (lambda: learner().hand_over(None), "optimizer=NoneType: an optimizer is needed"),
    "state": (lambda: learner().load_state_dict(None), "state_dict=NoneType"),
    "width_noise": (lambda: lf.GrowthOperator(*pair()[:2], width_noise="x"), "width_noise='x': a finite"),
    "depth_noise": (
        lambda: lf.grow(pair()[0], depth=3, method="ligo", depth_noise=math.nan),
        "depth_noise=nan: a finite",
    ),
}


@pytest.mark.parametrize("call, words", KINDS.values(), ids=KINDS)
def test_something_else_than_was_asked_for(call, words):
    with pytest.raises(lf.GrowthError, match=words):
        call()
