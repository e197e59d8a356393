"""GrowthOptimizer: the functional autograd path to rounding, and an optimizer to every part of a trainer."""

import copy
import io
import math
import pickle

import pytest
import torch
from models import TINY, build, exact_rms_norm, family, grow_copy, loss_of, make_batch, same, snapshot, train

import ligo_fast as lf


def functional_grads(op, batch):
    """Gradients of the factors by autograd through `functional_call`."""
    calls = Called(op.large)
    loss = torch.func.functional_call(calls, {f"model.{n}": w for n, w in op().items()}, (batch,))
    named = dict(op.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)
    }


class Called(torch.nn.Module):
    """The loss of a model as a forward pass, for `functional_call`."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return loss_of(self.model, batch)


def functional_training(op, batches, make):
    """The same learning with autograd through the functional form; returns the final weights."""
    inner = make(list(op.parameters()))
    for batch in batches:
        for p, g in zip(op.parameters(), functional_grads(op, batch).values(), strict=True):
            p.grad = g
        inner.step()
    return {n: w.detach() for n, w in op().items()}


def check_equals_functional(name, small, large, **options):
    batches = [make_batch(name, seed=s, dtype=torch.float64) for s in range(3)]
    op = lf.GrowthOperator(small, large, **options)
    twin = lf.GrowthOperator(small, large, **options)
    with exact_rms_norm():
        opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.05, momentum=0.9)
        for i, batch in enumerate(batches):
            loss_of(large, batch).backward()
            opt.step()
            if i == 0:
                want = functional_grads(twin, batch)
                for n, p in op.named_parameters():
                    torch.testing.assert_close(p.grad, want[n], rtol=1e-9, atol=1e-12, msg=n)
                assert sum(bool(g.abs().max() > 0) for g in want.values()) > len(want) // 2
            opt.zero_grad()
        learned = {n: p.detach().clone() for n, p in large.named_parameters()}
        lf.GrowthOptimizer(twin, torch.optim.SGD, lr=0.0)  # back to the start
        expected = functional_training(twin, batches, lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9))
    for n, p in learned.items():
        torch.testing.assert_close(p, expected[n], rtol=1e-9, atol=1e-11, msg=n)


@pytest.mark.parametrize("name", TINY)
def test_equals_the_functional_path_on_every_model(name):
    small = build(name, dtype=torch.float64)
    check_equals_functional(name, small, grow_copy(small))


@pytest.mark.parametrize("per_layer", ["none", "source", "target"])
@pytest.mark.parametrize("form", ["prefix", "dense"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied-maps", "free-maps"])
def test_equals_the_functional_path_with_every_option(tie, form, per_layer):
    small = build("gpt2-lm", dtype=torch.float64)
    large = grow_copy(small)
    check_equals_functional("gpt2-lm", small, large, tie=tie, form=form, per_layer=per_layer)


@pytest.mark.parametrize("per_layer", ["none", "source", "target"])
def test_equals_the_functional_path_with_free_maps_of_grouped_heads(per_layer):
    small = build("llama-tied", dtype=torch.float64)
    large = lf.grow(small, num_attention_heads=16, num_key_value_heads=4, depth=3, method="copy")
    check_equals_functional("llama-tied", small, large, tie=False, per_layer=per_layer)


@pytest.mark.parametrize("method", ["ligo+stack", "tile+ligo", "pad+ligo", "aki+ligo"])
def test_equals_the_functional_path_with_one_learned_side(method):
    small = build("gpt2-lm", dtype=torch.float64)
    check_equals_functional("gpt2-lm", small, grow_copy(small), method=method)


def start(dtype=torch.float32, name="gpt2-lm", compiled=False, inner=torch.optim.AdamW, **options):
    """A GPT-2 on its way from (8, 2 layers) to (16, 3 layers), and its optimizer."""
    small = build(name, dtype=dtype)
    large = grow_copy(small)
    model = torch.compile(large, backend="aot_eager") if compiled else large
    op = lf.GrowthOperator(small, model, seed=1)
    return model, lf.GrowthOptimizer(op, inner, **{"lr": 1e-2, **options})


def test_building_it_writes_the_initial_weights():
    small = build("gpt2-lm")
    large, reference = grow_copy(small), grow_copy(small)
    lf.GrowthOptimizer(lf.GrowthOperator(small, large, seed=4), lr=1e-2)
    lf.GrowthOperator(small, reference, seed=4).apply_()
    assert same(snapshot(reference), large)


def test_the_model_keeps_its_parameters():
    model, opt = start()
    ids = {n: id(p) for n, p in model.named_parameters()}
    before = snapshot(model)
    small_before = snapshot(opt.op.small)
    train(model, opt, 2)
    assert ids == {n: id(p) for n, p in model.named_parameters()}
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())
    assert not same(before, model) and same(small_before, opt.op.small)


def test_it_is_an_optimizer_of_the_large_model():
    model, opt = start()
    assert isinstance(opt, torch.optim.Optimizer)
    assert [id(p) for g in opt.param_groups for p in g["params"]] == [id(p) for p in model.parameters()]
    assert opt.param_groups[0]["lr"] == 1e-2 and "betas" in opt.param_groups[0]
    loss_of(model, make_batch("gpt2-lm")).backward()
    opt.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_tied_embeddings_stay_tied_and_learn_from_both_uses():
    model, opt = start()
    assert model.lm_head.weight is model.transformer.wte.weight
    before = model.lm_head.weight.detach().clone()
    train(model, opt, 1)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not torch.equal(before, model.lm_head.weight)


def test_accumulated_gradients_are_one_large_batch():
    results = []
    for parts in (1, 2):
        model, opt = start(torch.float64)
        batch = make_batch("gpt2-lm", rows=4)
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        for k in range(parts):
            rows = slice(4 // parts * k, 4 // parts * (k + 1))
            (loss_of(model, {n: t[rows] for n, t in batch.items()}) / parts).backward()
        opt.step()
        results.append(snapshot(model))
    for name, a in results[0].items():
        torch.testing.assert_close(a, results[1][name], rtol=1e-9, atol=1e-12)


def test_clipping_the_models_gradients_scales_the_factors():
    grads = {}
    for clip in (False, True):
        model, opt = start(torch.float64, inner=torch.optim.SGD)
        loss_of(model, make_batch("gpt2-lm")).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5 if clip else math.inf))
        opt.step()
        grads[clip] = {n: p.grad.clone() for n, p in opt.op.named_parameters()}
    assert norm > 0.5
    for name, g in grads[False].items():
        torch.testing.assert_close(grads[True][name], g * 0.5 / norm, rtol=1e-4, atol=1e-12)


def test_clipping_the_factors_gradients():
    model, opt = start(max_grad_norm=1e-3)
    loss_of(model, make_batch("gpt2-lm")).backward()
    opt.step()
    norm = torch.stack([p.grad.norm() for p in opt.op.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_a_scheduler_reaches_the_factors():
    model, opt = start(depth_lr=0.1, lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 1 / (k + 1))
    seen = []
    for step in range(3):
        train(model, opt, 1, step)
        seen.append([g["lr"] for g in opt.inner.param_groups])
        schedule.step()
    want = [[0.5 / (k + 1), 0.05 / (k + 1)] for k in range(3)]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(want))


def test_a_cycle_of_momentum_reaches_the_factors():
    model, opt = start(inner=torch.optim.SGD, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=4)
    train(model, opt, 1)
    schedule.step()
    train(model, opt, 1)
    assert opt.inner.param_groups[0]["momentum"] == opt.param_groups[0]["momentum"] < 0.95


def test_zero_learning_rate_moves_nothing():
    model, opt = start(lr=0.0, weight_decay=0.1)
    before = snapshot(model)
    train(model, opt, 2)
    assert same(before, model)


def test_a_closure_gives_the_same_step():
    model, opt = start()
    train(model, opt, 1)
    other, opt2 = start()

    def closure():
        opt2.zero_grad()
        loss = loss_of(other, make_batch("gpt2-lm"))
        loss.backward()
        return float(loss.detach())

    loss = opt2.step(closure)
    assert isinstance(loss, float) and same(snapshot(model), other)


INNER = {
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adafactor": (torch.optim.Adafactor, {}),
}


@pytest.mark.parametrize("inner, options", INNER.values(), ids=INNER)
def test_a_resumed_run_repeats_bit_for_bit(inner, options):
    model, opt = start(inner=inner, depth_lr=0.5, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 6)
    for step in range(3):
        train(model, opt, 1, step)
        schedule.step()
    file = io.BytesIO()
    torch.save({"opt": opt.state_dict(), "schedule": schedule.state_dict()}, file)
    halfway = snapshot(model)
    losses = []
    for step in range(3, 6):
        losses += train(model, opt, 1, step)
        schedule.step()

    file.seek(0)
    state = torch.load(file)
    again, opt2 = start(inner=inner, depth_lr=0.5, **options)
    schedule2 = torch.optim.lr_scheduler.CosineAnnealingLR(opt2, 6)
    opt2.load_state_dict(state["opt"])
    schedule2.load_state_dict(state["schedule"])
    assert same(halfway, again)
    resumed = []
    for step in range(3, 6):
        resumed += train(again, opt2, 1, step)
        schedule2.step()
    assert resumed == losses and same(snapshot(model), again)


def test_a_state_does_not_follow_later_steps():
    model, opt = start()
    train(model, opt, 1)
    state = opt.state_dict()
    kept = {n: t.clone() for n, t in state["factors"].items()}
    train(model, opt, 1)
    assert all(torch.equal(kept[n], t) for n, t in state["factors"].items())


@pytest.mark.parametrize("kind", ["other-factors", "other-sizes"])
def test_the_state_of_another_operator_is_refused(kind):
    model, opt = start()
    small = build("gpt2-lm")
    if kind == "other-factors":
        other = lf.GrowthOperator(small, grow_copy(small), tie=True)
        words = ["width/embed/"]
    else:
        other = lf.GrowthOperator(small, grow_copy(small, factor=3))
        words = ["width/embed/out/C", "16, 8", "8, 8"]
    state = lf.GrowthOptimizer(other, lr=1e-2).state_dict()
    before = snapshot(model)
    factors = {n: p.detach().clone() for n, p in opt.op.named_parameters()}
    with pytest.raises(lf.GrowthError) as error:
        opt.load_state_dict(state)
    assert all(w in str(error.value) for w in words), error.value
    assert same(before, model)
    assert all(torch.equal(factors[n], p) for n, p in opt.op.named_parameters())


@pytest.mark.parametrize("method", ["net2net+ligo", "ligo"])
def test_a_state_from_beside_other_fixed_maps(method):
    """Another seed or method gives other maps under the same factors: the model would become another."""

    def make(seed, method=method):
        small = build("gpt2-lm")
        large = grow_copy(small)
        return large, lf.GrowthOptimizer(lf.GrowthOperator(small, large, method, seed=seed), lr=1e-2)

    model, opt = make(0)
    train(model, opt, 2)
    learned, state = snapshot(model), opt.state_dict()
    resumed, again = make(0)
    again.load_state_dict(state)
    assert same(learned, resumed)
    resumed, other = make(1)
    if method == "ligo":  # all of it is learned: the seed is only where it started
        other.load_state_dict(state)
        assert same(learned, resumed)
        return
    for another in (other, make(0, "tile+ligo")[1]):
        before, factors = snapshot(another.op.large), another.state_dict()["factors"]
        with pytest.raises(lf.GrowthError, match="fixed maps"):
            another.load_state_dict(state)
        assert same(before, another.op.large)
        assert all(torch.equal(factors[n], p) for n, p in another.op.named_parameters())
    state.pop("fixed")  # as it was before it had one
    make(0)[1].load_state_dict(state)


def test_a_plain_optimizers_state_is_refused():
    model, opt = start()
    with pytest.raises(lf.GrowthError, match="factor"):
        opt.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())


def test_what_an_optimizer_of_factors_cannot_be():
    model, opt = start()
    with pytest.raises(lf.GrowthError, match=r"not a GrowthOptimizer's state.*param_groups"):
        opt.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
    with pytest.raises(lf.GrowthError, match="state_dict"):
        copy.deepcopy(opt)
    with pytest.raises(lf.GrowthError, match="state_dict"):
        pickle.dumps(opt)
    with pytest.raises(lf.GrowthError, match="no other parameters"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert len(opt.param_groups) == 1


def test_parameters_added_after_the_hand_over():
    model, opt = start()
    adam = torch.optim.AdamW([model.transformer.wte.weight])
    opt.hand_over(adam)
    opt.add_param_group({"params": [model.transformer.wpe.weight]})
    assert len(adam.param_groups) == len(opt.param_groups) == 2


@pytest.mark.parametrize(
    "inner, options",
    [(torch.optim.LBFGS, {}), (torch.optim.SGD, {"betas": 1}), (torch.optim.SGD, {"lr": -1})],
)
def test_an_inner_optimizer_that_does_not_take_the_factors(inner, options):
    small = build("gpt2-lm")
    large = grow_copy(small)
    before = snapshot(large)
    with pytest.raises(lf.GrowthError, match=f"{inner.__name__} does not take"):
        lf.GrowthOptimizer(lf.GrowthOperator(small, large), inner, **options)
    assert same(before, large)


def test_mixed_precision_with_a_grad_scaler():
    model, opt = start()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    batch, losses = make_batch("gpt2-lm"), []
    for _ in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


def test_a_grad_scaler_changes_no_step_and_skips_an_overflow():
    plain, opt = start()
    train(plain, opt, 1)
    model, opt = start()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    scaler.scale(loss_of(model, make_batch("gpt2-lm"))).backward()
    scaler.step(opt)
    scaler.update()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(p, model.get_parameter(name), rtol=1e-4, atol=1e-5)
    opt.zero_grad()
    before = snapshot(model)
    scaler.scale(loss_of(model, make_batch("gpt2-lm"))).backward()
    model.transformer.wte.weight.grad[0, 0] = float("inf")
    scaler.step(opt)
    scaler.update()
    assert same(before, model) and scaler.get_scale() == 2.0**7


def test_a_compiled_model_learns_as_the_plain_one():
    plain, opt = start()
    expected = train(plain, opt, 3)
    model, opt = start(compiled=True)
    losses = train(model, opt, 3)
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(p, opt.op.large.get_parameter(name), rtol=1e-3, atol=1e-4)


def test_a_data_parallel_model_learns_as_the_plain_one(tmp_path):
    plain, opt = start()
    expected = train(plain, opt, 3)
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        small = build("gpt2-lm")
        large = grow_copy(small)
        model = torch.nn.parallel.DistributedDataParallel(large)
        opt = lf.GrowthOptimizer(lf.GrowthOperator(small, model, seed=1), lr=1e-2)
        assert train(model, opt, 3) == expected
    finally:
        torch.distributed.destroy_process_group()
    assert same(snapshot(plain), large)


@pytest.mark.parametrize("name", ["bert-mlm", "qwen3-lm", "vit-class"])
def test_the_loss_falls(name):
    small = build(name)
    large = grow_copy(small)
    opt = lf.GrowthOptimizer(lf.GrowthOperator(small, large), lr=1e-2)
    batch, losses = make_batch(name), []
    for _ in range(10):
        loss = loss_of(large, batch)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_bfloat16_model_learns():
    model, opt = start(torch.bfloat16)
    losses = [train(model, opt, 1, 0)[0] for _ in range(10)]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in opt.op.parameters()} == {torch.float32}
    assert losses[-1] < losses[0]


def test_parameters_without_a_gradient_count_as_zero():
    """The pooler is not in this loss; its family has no gradient, the shared maps do."""
    small = build("bert")
    large = grow_copy(small)
    opt = lf.GrowthOptimizer(lf.GrowthOperator(small, large), lr=1e-2)
    large(**make_batch("bert")).last_hidden_state.square().mean().backward()
    assert large.pooler.dense.weight.grad is None
    before = large.pooler.dense.weight.detach().clone()
    opt.step()
    assert not torch.equal(before, large.pooler.dense.weight)


def test_a_step_without_gradients_is_refused():
    model, opt = start()
    before = snapshot(model)
    with pytest.raises(lf.GrowthError, match="gradient"):
        opt.step()
    assert same(before, model)


def test_an_operator_without_factors_is_refused():
    small = build("gpt2-lm")
    large = grow_copy(small)
    before = snapshot(large)
    with pytest.raises(lf.GrowthError, match=r"'tile.*no factors"):
        lf.GrowthOptimizer(lf.GrowthOperator(small, large, method="tile"), lr=1e-2)
    assert same(before, large)


def test_every_family_was_tried():
    assert {family(n) for n in TINY} == {
        "gpt2", "bert", "roberta", "llama", "mistral", "qwen2", "qwen3", "vit", "deit"
    }  # fmt: skip
