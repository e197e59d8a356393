"""release_grads: the same learning from gradients that are consumed inside backward; what it cannot do."""

import contextlib
import copy
import gc

import pytest
import torch
from models import TINY, build, exact_rms_norm, grow_copy, loss_of, make_batch, same, snapshot
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import ligo_fast as lf
from ligo_fast.native import cpu
from ligo_fast.training.released import Released


def learner(small, large, release, inner=torch.optim.SGD, lr=0.05, max_grad_norm=None, **options):
    op = lf.GrowthOperator(small, large, seed=1, **options)
    return lf.GrowthOptimizer(op, inner, lr=lr, max_grad_norm=max_grad_norm, release_grads=release)


def pair(name="gpt2-lm", dtype=torch.float32, **options):
    """A model and its optimizer, which releases gradients."""
    small = build(name, dtype=dtype)
    large = grow_copy(small)
    return large, learner(small, large, True, **options)


def gradients(opt):
    return {n: p.grad.clone() for n, p in opt.op.named_parameters()}


def check_equals_plain(name, small, large, parts=1, **options):
    """Three steps with and without release_grads: gradients and weights agree to rounding in float64."""
    seen = []
    with exact_rms_norm():
        for release in (False, True):
            opt, grads = learner(small, large, release, **options), []
            for step in range(3):
                for part in range(parts):
                    loss_of(large, make_batch(name, seed=parts * step + part, dtype=torch.float64)).backward()
                opt.step()
                grads.append(gradients(opt))
                opt.zero_grad()
            seen.append((grads, snapshot(large)))
            opt.close()
    for want, got in zip(seen[0][0], seen[1][0], strict=True):
        assert sum(bool(g.abs().max() > 0) for g in want.values()) > len(want) // 2
        for n, g in want.items():
            torch.testing.assert_close(got[n], g, rtol=1e-9, atol=1e-12, msg=n)
    for n, p in seen[0][1].items():
        torch.testing.assert_close(seen[1][1][n], p, rtol=1e-9, atol=1e-11, msg=n)


@pytest.mark.parametrize("name", TINY)
def test_equals_the_ordinary_pullback_on_every_model(name):
    small = build(name, dtype=torch.float64)
    check_equals_plain(name, small, grow_copy(small))


@pytest.mark.parametrize("per_layer", ["none", "source", "target"])
@pytest.mark.parametrize("form", ["prefix", "dense"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied-maps", "free-maps"])
def test_equals_the_ordinary_pullback_with_every_option(tie, form, per_layer):
    small = build("gpt2-lm", dtype=torch.float64)
    check_equals_plain("gpt2-lm", small, grow_copy(small), tie=tie, form=form, per_layer=per_layer)


@pytest.mark.parametrize("method", ["ligo+stack", "ligo+zero", "tile+ligo", "pad+ligo", "aki+ligo"])
def test_equals_the_ordinary_pullback_with_one_learned_side(method):
    small = build("gpt2-lm", dtype=torch.float64)
    check_equals_plain("gpt2-lm", small, grow_copy(small), method=method)


def test_equals_the_ordinary_pullback_where_layers_do_not_grow():
    small = build("bert-mlm", dtype=torch.float64)
    check_equals_plain("bert-mlm", small, grow_copy(small, depth=2))


def test_micro_batches_add_up():
    small = build("llama-tied", dtype=torch.float64)
    check_equals_plain("llama-tied", small, grow_copy(small), parts=3)


# what is left of a gradient


def test_no_gradient_of_the_large_model_is_left():
    large, opt = pair()
    loss_of(large, make_batch("gpt2-lm")).backward()
    assert all(type(p.grad) is Released for p in large.parameters())
    assert all(p.grad.shape == p.shape for p in large.parameters())
    opt.step()
    opt.zero_grad()
    assert all(p.grad is None for p in large.parameters())
    assert all(p.grad is None for p in opt.op.parameters())


def test_backward_never_holds_more_than_a_few_gradients():
    """The gradients that exist at once, with the work on them, are those of one layer, not of all."""
    small = build("gpt2-lm", n_embd=32, n_inner=128, n_layer=6)
    peaks = {}
    for release in (False, True):
        large = lf.grow(small, width=128, depth=12, method="copy")
        opt = learner(small, large, release)
        batch = make_batch("gpt2-lm")
        for _ in range(2):  # the workspace is there after the first
            loss = loss_of(large, batch)
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
                loss.backward()
            held = now = 0
            for event in sorted(prof.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
                if event.name() == "[memory]":
                    now += event.nbytes()
                    held = max(held, now)
            opt.step()
            opt.zero_grad()
        peaks[release] = held
        opt.close()
    all_gradients = sum(p.nbytes for p in large.parameters())
    one_layer = sum(p.nbytes for p in large.transformer.h[0].parameters())
    assert peaks[False] > all_gradients / 2 > 5 * one_layer  # while activations are freed
    assert peaks[True] < 1.5 * one_layer


# zeroing, as trainers do it


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("whose", ["optimizer", "model"])
def test_zeroing_either_side_forgets_what_was_consumed(whose, to_none):
    large, opt = pair(dtype=torch.float64)
    loss_of(large, make_batch("gpt2-lm", seed=7)).backward()
    (opt if whose == "optimizer" else large).zero_grad(set_to_none=to_none)
    loss_of(large, make_batch("gpt2-lm", seed=1)).backward()
    got = gradients(opt)
    opt.zero_grad()
    loss_of(large, make_batch("gpt2-lm", seed=1)).backward()
    for n, g in gradients(opt).items():
        assert torch.equal(g, got[n]), n


def test_zeroed_gradients_are_no_gradients():
    large, opt = pair()
    loss_of(large, make_batch("gpt2-lm")).backward()
    large.zero_grad()
    before = snapshot(large)
    with pytest.raises(lf.GrowthError, match="backward"):
        opt.step()
    assert same(before, large)


def test_a_gradient_cleared_alone_is_an_error():
    large, opt = pair()
    loss_of(large, make_batch("gpt2-lm")).backward()
    large.transformer.wte.weight.grad = None
    with pytest.raises(lf.GrowthError, match=r"transformer\.wte\.weight was cleared"):
        opt.step()


@pytest.mark.parametrize("wanted", ["wte", "wpe"])
def test_gradients_taken_between_backward_passes_change_nothing(wanted):
    """`torch.autograd.grad`, for penalties or logging, accumulates nothing."""
    grads = []
    for asks in (False, True):
        large, opt = pair(dtype=torch.float64)
        for part in range(2):
            loss_of(large, make_batch("gpt2-lm", seed=part)).backward()
            if asks:
                p = large.get_parameter(f"transformer.{wanted}.weight")
                torch.autograd.grad(loss_of(large, make_batch("gpt2-lm", seed=7)), [p])
        opt.step()
        grads.append(gradients(opt))
    for n, g in grads[0].items():
        assert torch.equal(g, grads[1][n]), n


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_graph_of_the_gradients_themselves():
    grads = []
    for keep in (False, True):
        large, opt = pair(dtype=torch.float64)
        for part in range(2):
            loss_of(large, make_batch("gpt2-lm", seed=part)).backward(create_graph=keep)
        opt.step()
        grads.append(gradients(opt))
    for n, g in grads[0].items():
        torch.testing.assert_close(grads[1][n], g, rtol=1e-9, atol=1e-12, msg=n)


# parameters of every kind


def test_a_tied_embedding_is_consumed_once_with_both_uses():
    large, _opt = pair(dtype=torch.float64)
    assert large.lm_head.weight is large.transformer.wte.weight
    calls = []
    large.lm_head.weight.register_post_accumulate_grad_hook(lambda p: calls.append(type(p.grad)))
    loss_of(large, make_batch("gpt2-lm")).backward()
    assert calls == [Released]


def test_unused_parameters_contribute_nothing():
    small = build("bert", dtype=torch.float64)
    large = grow_copy(small)
    opt = learner(small, large, True)
    large(**make_batch("bert")).last_hidden_state.square().mean().backward()
    assert large.pooler.dense.weight.grad is None
    opt.step()
    with pytest.raises(lf.GrowthError, match="backward"):
        opt.zero_grad()
        opt.step()


def test_a_parameter_used_only_later_is_no_partial_zeroing():
    grads = []
    for release in (False, True):
        small = build("bert", dtype=torch.float64)
        large = grow_copy(small)
        opt = learner(small, large, release)
        large(**make_batch("bert")).last_hidden_state.square().mean().backward()
        large.zero_grad()
        large(**make_batch("bert", seed=1)).pooler_output.square().mean().backward()
        opt.step()
        grads.append(gradients(opt))
    for n, g in grads[0].items():
        torch.testing.assert_close(grads[1][n], g, rtol=1e-9, atol=1e-12, msg=n)


def test_frozen_parameters_contribute_nothing():
    grads = []
    for release in (False, True):
        small = build("gpt2-lm", dtype=torch.float64)
        large = grow_copy(small)
        large.transformer.wte.weight.requires_grad_(False)
        opt = learner(small, large, release)
        loss_of(large, make_batch("gpt2-lm")).backward()
        opt.step()
        grads.append(gradients(opt))
    for n, g in grads[0].items():
        torch.testing.assert_close(grads[1][n], g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    grads = []
    for checkpointing in (False, True):
        large, opt = pair(dtype=torch.float64)
        large.train()
        if checkpointing:
            large.gradient_checkpointing_enable({"use_reentrant": reentrant})
            large.enable_input_require_grads()
        loss_of(large, make_batch("gpt2-lm")).backward()
        opt.step()
        grads.append(gradients(opt))
    for n, g in grads[0].items():
        torch.testing.assert_close(grads[1][n], g, rtol=1e-9, atol=1e-12)


def test_a_compiled_model_with_micro_batches():
    weights = []
    for compiled in (False, True):
        large, opt = pair()
        if compiled:
            large.transformer.h[1].mlp.compile(backend="aot_eager")
        for step in range(2):
            for part in range(2):
                rows = 2 + part  # a second shape: compiled while marks are in place of gradients
                loss_of(large, make_batch("gpt2-lm", seed=2 * step + part, rows=rows)).backward()
            opt.step()
            opt.zero_grad()
        weights.append(snapshot(large))
    for n, p in weights[0].items():
        torch.testing.assert_close(weights[1][n], p, rtol=1e-3, atol=1e-4)


def test_a_bfloat16_model():
    large, opt = pair(dtype=torch.bfloat16, inner=torch.optim.AdamW, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = loss_of(large, make_batch("gpt2-lm"))
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(float(loss.detach()))
    assert {p.grad is None for p in large.parameters()} == {True}
    assert {p.dtype for p in opt.op.parameters()} == {torch.float32} and losses[-1] < losses[0]


# what trainers do with gradients


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("clip", [torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_])
def test_clipping_the_model_is_an_error_that_says_what_to_use(clip, foreach):
    large, opt = pair()
    loss_of(large, make_batch("gpt2-lm")).backward()
    with pytest.raises(lf.GrowthError, match="max_grad_norm="):
        clip(large.parameters(), 1.0, foreach=foreach)
    opt.step()


def test_a_norm_that_only_gets_logged_is_infinite():
    large, opt = pair()
    loss_of(large, make_batch("gpt2-lm")).backward()
    before = gradients(opt)
    assert torch.nn.utils.clip_grad_norm_(large.parameters(), float("inf")) == float("inf")
    assert all(torch.equal(g, before[n]) for n, g in gradients(opt).items())


def test_reading_a_released_gradient_is_an_error():
    large, _opt = pair()
    loss_of(large, make_batch("gpt2-lm")).backward()
    for read in (lambda g: g + 1, lambda g: g.norm().item() + g.sum(), lambda g: g.clone()):
        with pytest.raises(lf.GrowthError, match="release_grads"):
            read(large.transformer.wte.weight.grad)
    assert "Released" in repr(large.transformer.wte.weight.grad)


def test_clipping_the_factors():
    large, opt = pair(max_grad_norm=1e-3)
    loss_of(large, make_batch("gpt2-lm")).backward()
    opt.step()
    norm = torch.nn.utils.get_total_norm([p.grad for p in opt.op.parameters()])
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_a_grad_scaler_changes_no_step_and_skips_an_overflow():
    weights = []
    for scale in (1.0, 2.0**8):
        large, opt = pair()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for part in range(2):
            scaler.scale(loss_of(large, make_batch("gpt2-lm", seed=part))).backward()
        scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
        weights.append(snapshot(large))
    for n, p in weights[0].items():
        torch.testing.assert_close(weights[1][n], p, rtol=1e-4, atol=1e-5)
    large.zero_grad()  # as the Trainer of transformers does
    before = snapshot(large)
    (scaler.scale(loss_of(large, make_batch("gpt2-lm"))) * float("inf")).backward()
    scaler.step(opt)
    scaler.update()
    assert same(before, large) and scaler.get_scale() == 2.0**7
    large.zero_grad()
    scaler.scale(loss_of(large, make_batch("gpt2-lm"))).backward()
    scaler.step(opt)
    assert not same(before, large) and all(bool(p.isfinite().all()) for p in large.parameters())


# what it refuses


def test_a_cast_parameter_is_an_error_inside_backward():
    large, _opt = pair()
    large.double()
    with pytest.raises(lf.GrowthError, match=r"parameter .* is now .*float64"):
        loss_of(large, make_batch("gpt2-lm")).backward()


@pytest.mark.parametrize("release", [True, False])
def test_a_replaced_parameter_is_an_error(release):
    small = build("gpt2-lm")
    large = grow_copy(small)
    opt = learner(small, large, release)
    block = large.transformer.h[1].mlp.c_fc
    block.weight = torch.nn.Parameter(block.weight.detach().clone())
    loss_of(large, make_batch("gpt2-lm")).backward()
    before = snapshot(large)
    with pytest.raises(lf.GrowthError, match=r"h\.1\.mlp\.c_fc\.weight .* replaced"):
        opt.step()
    assert same(before, large)


@pytest.mark.parametrize("release", [True, False])
def test_a_removed_parameter_is_an_error(release):
    small = build("gpt2-lm")
    large = grow_copy(small)
    opt = learner(small, large, release)
    loss_of(large, make_batch("gpt2-lm")).backward()
    del large.transformer.h[1].mlp.c_fc.weight  # as FSDP1, pruning and parametrizations do
    with pytest.raises(lf.GrowthError, match=r"h\.1\.mlp\.c_fc\.weight .* replaced"):
        opt.step()


def test_an_unfrozen_parameter_is_an_error():
    small = build("gpt2-lm")
    large = grow_copy(small)
    large.transformer.wpe.weight.requires_grad_(False)
    opt = learner(small, large, True)
    large.transformer.wpe.weight.requires_grad_(True)
    loss_of(large, make_batch("gpt2-lm")).backward()
    with pytest.raises(lf.GrowthError, match=r"transformer\.wpe\.weight kept its gradient"):
        opt.step()


@pytest.mark.parametrize("release", [True, False])
def test_a_trained_copy_is_an_error(release):
    small = build("gpt2-lm")
    large = grow_copy(small)
    opt = learner(small, large, release)
    loss_of(copy.deepcopy(large), make_batch("gpt2-lm")).backward()
    with pytest.raises(lf.GrowthError, match="not a copy"):
        opt.step()


def test_an_operator_without_factors_is_refused_before_any_hook():
    small = build("gpt2-lm")
    large = grow_copy(small)
    with pytest.raises(lf.GrowthError, match="no factors"):
        lf.GrowthOptimizer(lf.GrowthOperator(small, large, method="tile"), lr=1e-2, release_grads=True)
    loss_of(large, make_batch("gpt2-lm")).backward()
    assert type(large.transformer.wte.weight.grad) is torch.Tensor


# afterwards


@pytest.mark.parametrize("how", ["close", "forget"])
def test_the_model_trains_like_any_other_afterwards(how):
    large, opt = pair()
    loss_of(large, make_batch("gpt2-lm")).backward()
    opt.step()
    if how == "close":
        opt.close()
    else:
        large.zero_grad()
        del opt
        gc.collect()
    loss_of(large, make_batch("gpt2-lm")).backward()
    assert all(type(p.grad) is torch.Tensor for p in large.parameters())


@pytest.mark.parametrize("where", ["backward", "a hook", "a step", "between steps", "the first write"])
def test_whatever_interrupts_learning_the_gradients_are_the_models_again(where, monkeypatch):
    small = build("gpt2-lm")
    large = grow_copy(small)
    op = lf.GrowthOperator(small, large)
    calls = []

    def interrupt(*args, **kwargs):
        calls.append(1)
        if where == "the first write" or len(calls) == 8:
            raise KeyboardInterrupt

    options = {}
    if where == "backward":
        large.lm_head.weight.register_hook(interrupt)
    elif where == "a hook":
        monkeypatch.setattr(op, "fetch", interrupt)
    elif where == "a step":
        monkeypatch.setattr(lf.GrowthOptimizer, "zero_grad", interrupt)
    elif where == "between steps":
        options["progress"] = interrupt
    else:
        monkeypatch.setattr(lf.GrowthOptimizer, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt) as kept:  # which keeps all that the frames had
        lf.learn(op, [make_batch("gpt2-lm")], 10, release_grads=True, **options)
    assert kept.tb is not None and calls
    monkeypatch.undo()
    assert not any(isinstance(p.grad, Released) for p in large.parameters())
    plain = torch.optim.AdamW(large.parameters(), 1e-3)
    plain.zero_grad()
    loss_of(large, make_batch("gpt2-lm")).backward()
    torch.nn.utils.clip_grad_norm_(large.parameters(), 1.0)
    plain.step()
    lf.learn(op, [make_batch("gpt2-lm")], 1, release_grads=True)


def test_a_second_optimizer_that_releases_is_refused():
    large, opt = pair()
    with pytest.raises(lf.GrowthError, match=r"another GrowthOptimizer.*wte\.weight.*close\(\)"):
        lf.GrowthOptimizer(opt.op, torch.optim.SGD, lr=0.05, release_grads=True)
    loss_of(large, make_batch("gpt2-lm")).backward()
    opt.step()  # the first goes on
    opt.close()
    again = lf.GrowthOptimizer(opt.op, torch.optim.SGD, lr=0.05, release_grads=True)
    loss_of(large, make_batch("gpt2-lm")).backward()
    again.step()
    del again
    lf.GrowthOptimizer(opt.op, torch.optim.SGD, lr=0.05, release_grads=True)


def test_learn_releases_gradients_and_closes():
    results = []
    for release in (False, True):
        small = build("gpt2-lm", dtype=torch.float64)
        large = grow_copy(small)
        batches = [make_batch("gpt2-lm", seed=s) for s in range(3)]
        lf.learn(lf.GrowthOperator(small, large), batches, steps=6, release_grads=release)
        results.append(snapshot(large))
    for n, p in results[0].items():
        torch.testing.assert_close(results[1][n], p, rtol=1e-6, atol=1e-8)
    loss_of(large, batches[0]).backward()
    assert all(type(p.grad) is torch.Tensor for p in large.parameters())


def test_grow_takes_it_as_an_option_of_learning():
    small = build("gpt2-lm")
    large = lf.grow(small, width=16, data=[make_batch("gpt2-lm")], steps=2, release_grads=True)
    assert large.config.n_embd == 16


@pytest.mark.parametrize("release", [True, False])
def test_a_state_resumes_with_and_without(release):
    small = build("gpt2-lm", dtype=torch.float64)
    first = grow_copy(small)
    opt = learner(small, first, not release, inner=torch.optim.AdamW)
    loss_of(first, make_batch("gpt2-lm")).backward()
    opt.step()
    other = grow_copy(small)
    again = learner(small, other, release, inner=torch.optim.AdamW)
    again.load_state_dict(opt.state_dict())
    assert same(snapshot(first), other)
    loss_of(other, make_batch("gpt2-lm")).backward()
    again.step()


# the host never waits


class NoWaiting(TorchDispatchMode):
    """Fails on operations for which the host would wait for a GPU."""

    WAIT = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique", "_to_cpu")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.WAIT), f"{name} waits for the device"
        moved = (kwargs or {}).get("device")
        assert moved is None or name != "_to_copy", f"a copy to {moved}"
        return func(*args, **(kwargs or {}))


def test_the_check_of_waiting_can_fail():
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        float(torch.ones(1))
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        torch.ones(3).nonzero()


@pytest.mark.parametrize("release", [True, False])
def test_a_step_does_not_wait_for_the_device(release, on_kernels, device, monkeypatch):
    """As on a GPU: the kernels in `step`, and torch without the CPU's own code inside backward."""
    monkeypatch.setattr(cpu, "combine_", lambda *_: False)
    small = build("gpt2-lm", n_layer=1).to(device)
    large = grow_copy(small, depth=2)
    opt = learner(small, large, release, max_grad_norm=1.0)
    batch = {k: v.to(device) for k, v in make_batch("gpt2-lm").items()}
    for waiting in (contextlib.nullcontext(), NoWaiting()):  # the plans are made in the first step
        loss = loss_of(large, batch)
        with waiting if release else contextlib.nullcontext():
            loss.backward()
        with waiting:
            opt.step()
        opt.zero_grad()
