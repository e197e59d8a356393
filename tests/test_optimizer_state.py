"""Moments grow as gradients do, by any method, and the first steps after growth are of the usual size."""

import copy
import itertools

import pytest
import torch
from models import build, exact_rms_norm, loss_of, make_batch, train
from torch.optim import SGD, Adam, AdamW

import ligo_fast as lf
from ligo_fast import reference
from ligo_fast.compute import backend_torch
from ligo_fast.compute.backend_select import why_not_select
from ligo_fast.moments.bias_correction import EXCESS, longest_past
from ligo_fast.moments.optimizer_state import POLICIES
from ligo_fast.native.select import Table

MODELS = ("gpt2-lm", "bert-mlm", "llama-tied", "vit-class")
METHODS = sorted({m for names in lf.methods.names().values() for m in names})
OLD, BETAS = 20_000, (0.9, 0.999)  # steps of a small model that was trained for long
LATE = {"copy", "stack", "interpolate", "net2net", "tile", "aki"}  # methods without new entries


def gradients(model, name, seed=0):
    """The gradients of one batch, by parameter name."""
    params = dict(model.named_parameters())
    with exact_rms_norm():
        loss = loss_of(model, make_batch(name, seed=seed, dtype=next(model.parameters()).dtype))
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(params.items(), grads, strict=True)
    }


def steady(model, grads, kind=AdamW, steps=OLD, **options):
    """An optimizer after many steps of the same gradient, whose averages are the gradient and its square."""
    opt = kind(model.parameters(), **{"lr": 1e-3, **options})
    for name, p in model.named_parameters():
        g = grads[name].detach().clone()
        if kind is SGD:
            opt.state[p] = {"momentum_buffer": g}
            continue
        c1, c2 = (1 - beta**steps for beta in opt.defaults["betas"])
        opt.state[p] = {"step": torch.tensor(float(steps)), "exp_avg": g * c1, "exp_avg_sq": g.square() * c2}
    return opt


def pair(name, method="tile", dtype=torch.float64, factor=2, depth=4, **options):
    """A small model, its operator and the grown model."""
    small = build(name, dtype=dtype)
    large = lf.grow(small, width=factor * small.config.hidden_size, depth=depth, method="scratch", seed=5)
    op = lf.GrowthOperator(small, large, method=method, seed=1, **options)
    op.apply_()
    return small, large, op


def named_state(model, opt):
    return {n: opt.state[p] for n, p in model.named_parameters() if opt.state.get(p)}


def dense(maps, power):
    """A map, or one per layer, as a float64 tensor with every entry to a power."""
    if not isinstance(maps, backend_torch.Map):
        return torch.stack([m.dense() for m in maps]) ** power
    return maps.dense() ** power


def oracle(op, small, power):
    """Tensors grown by the weights' map with entries to a power, dense and in float64; NaN where none are."""
    out = {n: torch.full_like(p, torch.nan, dtype=torch.float64) for n, p in op.large.named_parameters()}
    for piece in op.pieces:
        stack = torch.stack([piece.small_slot.of(small[n]).detach() for n in piece.small])
        depth = torch.eye(len(stack)) if piece.depth is None else piece.depth.dense() ** power
        grow = reference.grow_per_source if piece.order == "width_first" else reference.grow
        grown = grow(stack, depth, dense(piece.rows, power), dense(piece.cols, power)).detach()
        for n, y in zip(piece.large, grown, strict=True):
            piece.large_slot.of(out[n]).copy_(y)
    return out


def check_map(name, op, steps=OLD):
    """The policy "map" is the oracle, up to the steps that the averages count as."""
    grads = gradients(op.small, name)
    large_opt = AdamW(op.large.parameters(), lr=1e-3)
    lf.grow_optimizer(op, steady(op.small, grads, steps=steps), large_opt, "map")
    mean, square = oracle(op, grads, 1), oracle(op, {n: g.square() for n, g in grads.items()}, 2)
    state = named_state(op.large, large_opt)
    for n in op.large.state_dict().keys() & mean.keys():
        if n not in state:
            assert bool((mean[n].isnan() | (mean[n] == 0)).all()), n
            continue
        c1, c2 = (1 - beta ** float(state[n]["step"]) for beta in BETAS)
        torch.testing.assert_close(state[n]["exp_avg"], mean[n] * c1, rtol=1e-9, atol=1e-12, msg=n)
        least = torch.maximum(square[n], mean[n].square()) * c2
        torch.testing.assert_close(state[n]["exp_avg_sq"], least, rtol=1e-9, atol=1e-14, msg=n)
    return state


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_the_weights_map_is_the_dense_formula(name, method):
    *_, op = pair(name, method)
    state = check_map(name, op)
    assert (not state) == (method == "scratch")
    counts = {float(s["step"]) for s in state.values()}
    assert counts <= {OLD} if method in LATE else counts <= {OLD, longest_past(*BETAS)}


@pytest.mark.parametrize("per_layer", ["none", "source", "target"])
@pytest.mark.parametrize("form", ["prefix", "dense"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied-maps", "free-maps"])
def test_a_learned_operator_is_the_dense_formula_too(tie, form, per_layer):
    _, large, op = pair("gpt2-lm", "ligo", tie=tie, form=form, per_layer=per_layer)
    lf.learn(op, [make_batch("gpt2-lm", seed=s) for s in range(3)], steps=3, lr=0.1)
    assert len(check_map("gpt2-lm", op)) == len(list(large.parameters()))


@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "llama-lm", "llama-tied", "qwen3-lm", "vit-class"])
def test_gradients_grow_by_the_gradients_map(name):
    """Exactness by the definition: the momentum that is the small gradient becomes the large gradient."""
    small, large, op = pair(name, "tile", depth=None)
    large_opt = SGD(large.parameters(), lr=0.1, momentum=0.9)
    lf.grow_optimizer(op, steady(small, gradients(small, name), SGD, momentum=0.9), large_opt, "gradient")
    want = gradients(large, name)
    scale = max(float(g.abs().max()) for g in want.values())
    for n, p in large.named_parameters():
        got = large_opt.state[p]["momentum_buffer"]
        torch.testing.assert_close(got, want[n], rtol=1e-9, atol=1e-12 * scale, msg=n)


@pytest.mark.parametrize("name", ["gpt2-lm", "vit-class"])
def test_gradients_of_wider_heads_grow_by_the_gradients_map(name):
    small = build(name, dtype=torch.float64)
    config = copy.deepcopy(small.config)
    config.hidden_size, heads = 16, config.num_attention_heads
    large = lf.grow(small, target=config, method="scratch")
    assert large.config.num_attention_heads == heads
    op = lf.GrowthOperator(small, large, method="tile+stack")
    op.apply_()
    large_opt = SGD(large.parameters(), lr=0.1, momentum=0.9)
    lf.grow_optimizer(op, steady(small, gradients(small, name), SGD, momentum=0.9), large_opt, "gradient")
    for n, want in gradients(large, name).items():
        got = large_opt.state[large.get_parameter(n)]["momentum_buffer"]
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11, msg=n)


@pytest.mark.parametrize("method", ["net2net", "pad"])
def test_the_gradients_map_is_nearer_to_the_gradient_than_the_weights(method):
    error = {}
    for policy in ("gradient", "map"):
        small, large, op = pair("gpt2-lm", method, depth=None)
        large_opt = SGD(large.parameters(), lr=0.1, momentum=0.9)
        old = steady(small, gradients(small, "gpt2-lm"), SGD, momentum=0.9)
        lf.grow_optimizer(op, old, large_opt, policy)
        want = gradients(large, "gpt2-lm")
        got = {n: large_opt.state[p]["momentum_buffer"] for n, p in large.named_parameters()}
        error[policy] = sum(float((got[n] - want[n]).square().sum()) for n in want)
    assert error["gradient"] < 0.5 * error["map"]


@pytest.mark.parametrize("policy", ["gradient", "map", "keep"])
@pytest.mark.parametrize("method", METHODS)
def test_second_moments_are_squares(method, policy):
    """Where the small model's mean square is the square of its mean, so is the large one's, or larger."""
    small, large, op = pair("gpt2-lm", method)
    large_opt = Adam(large.parameters())
    lf.grow_optimizer(op, steady(small, gradients(small, "gpt2-lm"), Adam), large_opt, policy)
    for n, s in named_state(large, large_opt).items():
        m, v = (
            s[k] / (1 - b ** float(s["step"])) for k, b in zip(("exp_avg", "exp_avg_sq"), BETAS, strict=True)
        )
        assert bool((v >= m.square() * (1 - 1e-12)).all()), n
        if "ligo" not in op.growth.method and "pad" not in op.growth.method:
            torch.testing.assert_close(v, m.square(), rtol=1e-9, atol=0.0, msg=n)


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("scratch", "tile")] + ["tile+interpolate"]
)
@pytest.mark.parametrize("name", MODELS)
def test_keep_has_every_old_entry_once(name, method):
    small, large, op = pair(name, method)
    large_opt = AdamW(large.parameters())
    old = steady(small, gradients(small, name))
    lf.grow_optimizer(op, old, large_opt, "keep")
    state, was = named_state(large, large_opt), named_state(small, old)
    for piece in {tuple(p.large): p for p in reversed(op.pieces)}.values():
        now = [state[n] for n in piece.large if n in state]
        if op.growth.depth.get(piece.name) is None or method != "ligo":  # a dense D has no one old layer
            assert len(now) == len(piece.small)
        ratio = (1 - BETAS[0] ** float(now[0]["step"])) / (1 - BETAS[0] ** OLD)
        values = [
            torch.cat([s["exp_avg"].flatten() for s in g]) for g in (now, [was[n] for n in piece.small])
        ]
        got, want = (v[v != 0].sort().values for v in values)
        if method != "ligo" or piece.depth is None:
            torch.testing.assert_close(got, want * ratio, rtol=1e-9, atol=0.0, msg=piece.name)


def largest_step(betas, policy, method, steps=40, amsgrad=False, model="gpt2-lm"):
    """The largest of the first steps, in learning rates, while gradients are what the averages say.

    Entries without a past have a gradient of any size, the same at each step.
    """
    small, large, op = pair(model, method)
    small_opt = steady(small, {n: torch.randn_like(p) for n, p in small.named_parameters()}, betas=betas)
    large_opt = AdamW(large.parameters(), lr=1e-3, betas=betas, weight_decay=0.0, eps=1e-30, amsgrad=amsgrad)
    lf.grow_optimizer(op, small_opt, large_opt, policy)
    for p in large.parameters():
        p.grad = torch.randn_like(p)
        if s := large_opt.state.get(p):
            mean = s["exp_avg"] / (1 - betas[0] ** float(s["step"]))
            p.grad = torch.where(mean != 0, mean, p.grad)
    largest = 0.0
    for _ in range(steps):
        before = [p.detach().clone() for p in large.parameters()]
        large_opt.step()
        moved = [(p.detach() - b).abs().max() for p, b in zip(large.parameters(), before, strict=True)]
        largest = max(largest, float(torch.stack(moved).max()) / 1e-3)
    return largest


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.9, 0.98), (0.5, 0.999)])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_step_after_growth_is_oversized(policy, betas):
    for method in ("tile", "pad+zero", "random", "ligo"):
        assert largest_step(betas, policy, method) <= EXCESS * (1 + 1e-6), method


def test_no_step_is_oversized_with_the_largest_mean_square():
    assert largest_step(BETAS, "keep", "net2net", amsgrad=True) <= EXCESS * (1 + 1e-6)


def test_a_carried_count_beside_new_entries_would_oversize_steps(monkeypatch):
    """What the count is chosen for: with that of the small model steps grow to 6.5 learning rates."""
    monkeypatch.setattr("ligo_fast.moments.optimizer_state.longest_past", lambda *betas: float("inf"))
    assert largest_step(BETAS, "keep", "tile", steps=1) == pytest.approx(0.1 / 0.001**0.5, rel=1e-3)
    assert 6.0 < largest_step(BETAS, "keep", "tile") < 7.0


@pytest.mark.parametrize(
    "betas, steps", [((0.9, 0.999), 8), ((0.9, 0.98), 13), ((0.95, 0.999), None), ((0.0, 0.999), 0)], ids=str
)
def test_the_longest_past_is_the_longest(betas, steps):
    def worst(s):
        def h(k):
            return (1 - betas[0] ** k) / (1 - betas[1] ** k) ** 0.5

        return max(h(k) / h(k + s) for k in range(1, 3000))

    s = longest_past(*betas)
    assert worst(s) <= EXCESS < worst(s + 1)
    assert steps in (None, s)
    assert longest_past(0.9, 0.95) == float("inf")


def test_without_a_first_moment_only_whole_parameters_have_a_past():
    small, large, op = pair("gpt2-lm", "random")
    small_opt = steady(small, gradients(small, "gpt2-lm"), betas=(0.0, 0.999))
    large_opt = AdamW(large.parameters(), betas=(0.0, 0.999))
    lf.grow_optimizer(op, small_opt, large_opt, "gradient")
    assert not named_state(large, large_opt)


@pytest.mark.parametrize("policy", ["gradient", "map", "keep"])
@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_growing_by_nothing_changes_nothing(kind, policy):
    options = {"momentum": 0.9} if kind is SGD else {"amsgrad": True}
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1)
    op = lf.GrowthOperator(small, large, method="copy")
    op.apply_()
    opts = [kind(m.parameters(), lr=1e-2, **options) for m in (small, large)]
    train(small, opts[0], 3)
    op.apply_()
    lf.grow_optimizer(op, *opts, policy)
    for n, s in named_state(small, opts[0]).items():
        for key, t in named_state(large, opts[1])[n].items():
            assert torch.equal(t, s[key])
    losses = [train(m, o, 3, first=3) for m, o in zip((small, large), opts, strict=True)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", MODELS)
def test_learning_goes_on_without_a_jump(name):
    small = build(name)
    small_opt = AdamW(small.parameters(), lr=3e-3)
    fixed = make_batch(name, seed=0)

    def descend(model, opt, steps):
        losses = []
        for _ in range(steps):
            loss = loss_of(model, fixed)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    before = descend(small, small_opt, 40)
    large = lf.grow(small, width=2 * small.config.hidden_size, method="tile")
    op = lf.GrowthOperator(small, large, method="tile")
    large_opt = AdamW(large.parameters(), lr=3e-3)
    lf.grow_optimizer(op, small_opt, large_opt, "gradient")
    after = descend(large, large_opt, 20)
    step = max(a - b for a, b in itertools.pairwise(before[-10:]))
    assert after[0] <= before[-1] + 1e-5
    assert all(b < a + step for a, b in itertools.pairwise(after))
    assert after[-1] < after[0] - 5 * step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"foreach": True}, {"fused": True}, {"amsgrad": True}, {"capturable": True}], ids=str
)
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_the_state_is_what_torch_would_make(kind, options, dtype):
    small, large, op = pair("gpt2-lm", "net2net+stack", dtype=dtype)
    opts = [kind(m.parameters(), **options) for m in (small, large)]
    twin = copy.deepcopy(large)
    made = kind(twin.parameters(), **options)
    with torch.no_grad():
        for model, opt in ((small, opts[0]), (twin, made)):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            if options.get("capturable"):  # on a CPU it makes a state and refuses to step
                opt._init_group(opt.param_groups[0], [], [], [], [], [], [])
                for s in opt.state.values():
                    s["step"] += 1
            else:
                opt.step()
    lf.grow_optimizer(op, *opts, "gradient")
    for p, q in zip(large.parameters(), twin.parameters(), strict=True):
        got, want = opts[1].state[p], made.state[q]
        assert set(got) == set(want)
        for key, t in want.items():
            assert (got[key].shape, got[key].dtype, got[key].device) == (t.shape, t.dtype, t.device), key
            assert got[key].stride() == t.stride()
    if not options.get("capturable"):
        train(large, opts[1], 2)
    opts[1].load_state_dict(opts[1].state_dict())


def test_in_bfloat16_moments_are_the_rounded_ones():
    small, large, op = pair("gpt2-lm", "net2net+stack", dtype=torch.bfloat16)
    grads = gradients(small, "gpt2-lm")
    large_opt = AdamW(large.parameters())
    lf.grow_optimizer(op, steady(small, grads, steps=10**6), large_opt, "map")
    want = oracle(op, grads, 1)
    for n, s in named_state(large, large_opt).items():
        torch.testing.assert_close(s["exp_avg"], want[n].bfloat16(), rtol=2**-8, atol=0.0)


def test_an_average_of_squares_without_its_largest_starts_as_the_largest():
    small, large, op = pair("gpt2-lm")
    large_opt = AdamW(large.parameters(), amsgrad=True)
    lf.grow_optimizer(op, steady(small, gradients(small, "gpt2-lm")), large_opt, "gradient")
    for s in named_state(large, large_opt).values():
        assert torch.equal(s["max_exp_avg_sq"], s["exp_avg_sq"])


def test_groups_and_their_order_do_not_matter():
    small, large, op = pair("bert-mlm", "net2net+stack")
    grads = gradients(small, "bert-mlm")
    plain, grouped = AdamW(large.parameters()), AdamW(split(large), betas=BETAS)
    lf.grow_optimizer(op, steady(small, grads), plain, "gradient")
    small_opt = AdamW(split(small)[::-1])
    small_opt.state.update(steady(small, grads).state)
    lf.grow_optimizer(op, small_opt, grouped, "gradient")
    for p in large.parameters():
        assert all(torch.equal(t, grouped.state[p][key]) for key, t in plain.state[p].items())
    assert [g["weight_decay"] for g in grouped.param_groups] == [0.1, 0.0]


def split(model):
    """Two groups, as trainers make them: matrices decay."""
    params = list(model.parameters())[::-1]
    return [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in params if p.dim() == 1], "weight_decay": 0.0},
    ]


def test_averages_are_corrected_with_each_optimizers_own_betas():
    small, large, op = pair("gpt2-lm", depth=None)
    grads = gradients(small, "gpt2-lm")
    opts = [AdamW(large.parameters(), betas=b) for b in (BETAS, (0.8, 0.99))]
    for opt in opts:
        lf.grow_optimizer(op, steady(small, grads, steps=7), opt, "gradient")
    for p in large.parameters():
        for key, beta in (("exp_avg", (0.9, 0.8)), ("exp_avg_sq", (0.999, 0.99))):
            means = [o.state[p][key] / (1 - b**7) for o, b in zip(opts, beta, strict=True)]
            torch.testing.assert_close(*means, rtol=1e-10, atol=0.0)


def test_parameters_without_a_past_have_none_after_growth():
    small, large, op = pair("gpt2-lm", "tile+stack")
    small_opt = steady(small, gradients(small, "gpt2-lm"))
    frozen = [n for n, _ in small.named_parameters() if ".h.0." in n or "wpe" in n]
    for n in frozen:
        del small_opt.state[small.get_parameter(n)]
    lf.grow_optimizer(op, small_opt, large_opt := AdamW(large.parameters()), "gradient")
    state = named_state(large, large_opt)
    fresh = {n for n, _ in large.named_parameters() if ".h.0." in n or ".h.2." in n or "wpe" in n}
    assert {n for n, _ in large.named_parameters()} - state.keys() == fresh


def test_frozen_parameters_of_the_large_model_get_nothing():
    small, large, op = pair("gpt2-lm", "tile+stack")
    kept = [p for n, p in large.named_parameters() if ".h.3." in n]
    lf.grow_optimizer(op, steady(small, gradients(small, "gpt2-lm")), large_opt := AdamW(kept), "gradient")
    assert set(large_opt.state) == set(kept)


def test_layers_of_different_age_are_mixed_as_gradients():
    _, large, op = pair("gpt2-lm", "tile+ligo")
    grads = gradients(op.small, "gpt2-lm")
    small_opt, young = steady(op.small, grads), steady(op.small, grads, steps=5)
    for n, p in op.small.named_parameters():
        if ".h.1." in n:
            small_opt.state[p] = young.state[p]
    lf.grow_optimizer(op, small_opt, large_opt := AdamW(large.parameters()), "map")
    want = oracle(op, grads, 1)
    for n, s in named_state(large, large_opt).items():
        mean = s["exp_avg"] / (1 - BETAS[0] ** float(s["step"]))
        torch.testing.assert_close(mean, want[n], rtol=1e-9, atol=1e-12, msg=n)


def test_whatever_was_there_is_replaced():
    small, large, op = pair("gpt2-lm", dtype=torch.float32)
    large_opt = AdamW(large.parameters())
    train(large, large_opt, 1)
    lf.grow_optimizer(op, steady(small, gradients(small, "gpt2-lm")), large_opt, "fresh")
    assert not large_opt.state
    lf.grow_optimizer(op, AdamW(small.parameters()), large_opt, "fresh")  # nothing is read


def test_old_entries_keep_theirs_unless_another_policy_is_asked_for():
    small, large, op = pair("gpt2-lm")
    opts = [AdamW(large.parameters()) for _ in range(2)]
    for opt, policy in zip(opts, ([], ["keep"]), strict=True):
        lf.grow_optimizer(op, steady(small, gradients(small, "gpt2-lm")), opt, *policy)
    torch.testing.assert_close(opts[0].state_dict(), opts[1].state_dict(), rtol=0, atol=0)


def test_the_small_optimizer_is_not_changed():
    small, large, op = pair("gpt2-lm", "ligo")
    small_opt = steady(small, gradients(small, "gpt2-lm"))
    before = copy.deepcopy(small_opt.state_dict())
    lf.grow_optimizer(op, small_opt, AdamW(large.parameters()), "keep")
    torch.testing.assert_close(small_opt.state_dict(), before, rtol=0, atol=0)


def test_a_transposed_state_is_read_as_its_parameter():
    small, large, op = pair("gpt2-lm")
    small_opt = steady(small, gradients(small, "gpt2-lm"))
    opts = [AdamW(large.parameters()) for _ in range(2)]
    lf.grow_optimizer(op, small_opt, opts[0], "gradient")
    for s in small_opt.state.values():
        s["exp_avg"] = s["exp_avg"].t().contiguous().t()
    lf.grow_optimizer(op, small_opt, opts[1], "gradient")
    for p in large.parameters():
        assert torch.equal(opts[0].state[p]["exp_avg"], opts[1].state[p]["exp_avg"])


def test_accelerates_optimizers_are_looked_into():
    from accelerate import Accelerator

    small, large, op = pair("gpt2-lm", dtype=torch.float32)
    accelerator = Accelerator(cpu=True)
    opts = [accelerator.prepare(AdamW(m.parameters())) for m in (small, large)]
    train(small, opts[0], 2)
    lf.grow_optimizer(op, *opts, "gradient")
    assert len(opts[1].optimizer.state) == len(list(large.parameters()))


def test_selections_are_one_compiled_call_with_the_result_of_torch(monkeypatch):
    small, large, op = pair("llama-tied", "net2net+stack", dtype=torch.float32)
    if why := why_not_select(op.device):
        pytest.skip(why)
    small_opt = steady(small, gradients(small, "llama-tied"))
    opts = [AdamW(large.parameters()) for _ in range(2)]
    calls, call = [], Table.__call__
    with monkeypatch.context() as m:
        m.setattr(backend_torch, "grow_", None)  # nothing is left to torch
        m.setattr(Table, "__call__", lambda table: (calls.append(table), call(table)))
        lf.grow_optimizer(op, small_opt, opts[0], "gradient")
    assert len(calls) == 1
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    lf.grow_optimizer(op, small_opt, opts[1], "gradient")
    for p in large.parameters():
        for key, t in opts[1].state[p].items():
            torch.testing.assert_close(opts[0].state[p][key], t, rtol=1e-6, atol=0.0)


def broken(what):
    """Operator and optimizers with one thing wrong, and what the error says of it."""
    small, large, op = pair("gpt2-lm")
    small_opt, large_opt = steady(small, gradients(small, "gpt2-lm")), AdamW(large.parameters())
    name = "transformer.h.1.mlp.c_fc.weight"
    p = small.get_parameter(name)
    other = build("gpt2-lm", seed=3, dtype=torch.float64)
    if what == "policy":
        return op, small_opt, large_opt, "twice", "'twice' is none of 'keep', 'gradient', 'map', 'fresh'"
    if what == "swapped":
        return op, large_opt, small_opt, "map", "52 of the 52 parameters of the small model's optimizer"
    if what == "another model's":
        return op, small_opt, AdamW(other.parameters()), "map", "of the large model's optimizer are not that"
    if what == "one more parameter":
        extra = AdamW([*large.parameters(), torch.nn.Parameter(torch.ones(3, 5))])
        return op, small_opt, extra, "map", r"1 of the 53 .* the first has shape \[3, 5\]"
    if what == "never stepped":
        return op, AdamW(small.parameters()), large_opt, "map", "AdamW has not made a step yet"
    if what == "kind":
        return op, small_opt, SGD(large.parameters(), 0.1), "map", "AdamW cannot become that of SGD"
    if what == "unsupported":
        both = [torch.optim.RMSprop(m.parameters()) for m in (small, large)]
        return op, *both, "map", "RMSprop cannot become that of RMSprop: both must be"
    if what == "shape":
        small_opt.state[p]["exp_avg"] = torch.zeros(3, 4)
        return (
            op,
            small_opt,
            large_opt,
            "map",
            rf"{name}: exp_avg is \[3, 4\] on cpu, the parameter \[8, 12\]",
        )
    if what == "missing":
        del small_opt.state[p]["exp_avg_sq"]
        return op, small_opt, large_opt, "map", f"{name}: the state of AdamW has no exp_avg_sq"
    if what == "unknown":
        small_opt.state[p]["ema"] = torch.zeros_like(p)
        return op, small_opt, large_opt, "map", f"{name}: how ema of AdamW grows is not known"
    if what == "integers":  # as optimizers of 8 bits keep them
        small_opt.state[p]["exp_avg"] = small_opt.state[p]["exp_avg"].to(torch.int8)
        return op, small_opt, large_opt, "map", f"{name}: how exp_avg of torch.int8 grows is not known"
    if what == "nan":
        small_opt.state[p]["exp_avg"][0, :2] = torch.nan
        return op, small_opt, large_opt, "map", f"{name}: exp_avg has 2 values that are NaN or infinite"
    if what == "betas":
        layers = [{"params": [q], "betas": (0.9, 0.9 + 0.001 * i)} for i, q in enumerate(large.parameters())]
        return op, small_opt, AdamW(layers), "map", r"h\.0\..*h\.1\..*: the betas of their groups differ"
    large.get_parameter(name).data = torch.zeros(3, 4)
    return op, small_opt, large_opt, "map", rf"{name}: dimension 0 \(embed\) is 3 in the target"


CASES = [
    "policy", "swapped", "another model's", "one more parameter", "never stepped", "kind", "unsupported",
    "shape", "missing", "unknown", "integers", "nan", "betas", "resized",
]  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_what_is_wrong_is_named_and_nothing_is_written(what):
    op, small_opt, large_opt, policy, message = broken(what)
    first = large_opt.param_groups[0]["params"][0]
    mark = {"momentum_buffer": torch.ones_like(first)}
    large_opt.state[first] = mark
    with pytest.raises(lf.GrowthError, match=message):
        lf.grow_optimizer(op, small_opt, large_opt, policy)
    assert large_opt.state[first] is mark
    assert set(mark) == {"momentum_buffer"}
