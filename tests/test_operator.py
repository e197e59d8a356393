"""GrowthOperator: what it writes is the dense formula, walked by hand over every parameter."""

import copy
import io

import pytest
import torch
from models import TINY, build, make_batch, output, same, snapshot
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ligo_fast as lf
from ligo_fast.compute import backend_torch
from ligo_fast.maps import Selection
from ligo_fast.native import cpu

# rows and columns of every parameter as stored: axis names, "" for an axis that does not grow
GPT2_OUTER = {
    "transformer.wte.weight": ("", "embed"),
    "transformer.wpe.weight": ("", "embed"),
    "transformer.ln_f.weight": ("embed",),
    "transformer.ln_f.bias": ("embed",),
}
GPT2_LAYER = {
    "ln_1.weight": ("embed",),
    "ln_1.bias": ("embed",),
    "attn.c_attn.weight": ("embed", "q|k|v"),
    "attn.c_attn.bias": ("q|k|v",),
    "attn.c_proj.weight": ("v", "embed"),
    "attn.c_proj.bias": ("embed",),
    "ln_2.weight": ("embed",),
    "ln_2.bias": ("embed",),
    "mlp.c_fc.weight": ("embed", "ffn"),
    "mlp.c_fc.bias": ("ffn",),
    "mlp.c_proj.weight": ("ffn", "embed"),
    "mlp.c_proj.bias": ("embed",),
}
LLAMA_OUTER = {
    "model.embed_tokens.weight": ("", "embed"),
    "model.norm.weight": ("embed",),
    "lm_head.weight": ("", "embed"),
}
LLAMA_LAYER = {
    "input_layernorm.weight": ("embed",),
    "self_attn.q_proj.weight": ("q", "embed"),
    "self_attn.k_proj.weight": ("k", "embed"),
    "self_attn.v_proj.weight": ("v", "embed"),
    "self_attn.o_proj.weight": ("embed", "context"),
    "post_attention_layernorm.weight": ("embed",),
    "mlp.gate_proj.weight": ("ffn", "embed"),
    "mlp.up_proj.weight": ("ffn", "embed"),
    "mlp.down_proj.weight": ("embed", "ffn"),
}


def below(c):
    """[I; C]."""
    return torch.cat([torch.eye(c.shape[1], dtype=c.dtype), c])


def gpt2_maps(state):
    return {axis: below(state[f"width/{axis}/out/C"]) for axis in ("embed", "q", "k", "v", "ffn")}


def llama_maps(state):
    """Heads are (kv_head, group, head_dim): only the first two mix, head_dim never."""
    eye = torch.eye(4, dtype=torch.float64)
    group = below(state["width/context/out/A/B/C"])
    q, k, v = (below(state[f"width/{name}/C"]) for name in ("q/out/A/A", "k/out/A", "context/out/A/A"))
    return {
        "embed": below(state["width/embed/out/C"]),
        "ffn": below(state["width/ffn/out/C"]),
        "q": torch.kron(torch.kron(q, group), eye),
        "k": torch.kron(k, eye),
        "v": torch.kron(v, eye),
        "context": torch.kron(torch.kron(v, group), eye),
    }


def dense(weight, axes, maps):
    """U W V^T, or U b for a vector, with whole matrices."""
    if len(axes) == 1:
        return maps[axes[0]] @ weight
    rows, cols = (
        maps[a] if a else torch.eye(n, dtype=weight.dtype) for a, n in zip(axes, weight.shape, strict=True)
    )
    return rows @ weight @ cols.T


def expected_weights(small, state, maps, outer, layer, prefix, layers):
    """Every large parameter: the blend over source layers by its own D, then its two maps."""
    weights = {n: p.detach() for n, p in small.named_parameters()}
    large = {name: dense(weights[name], axes, maps) for name, axes in outer.items()}
    for name, axes in layer.items():
        stack = torch.stack([weights[f"{prefix}.{j}.{name}"] for j in range(2)])
        fused = [d for d, a in enumerate(axes) if "|" in a]
        blocks = axes[fused[0]].split("|") if fused else [""]
        parts = []
        for block, part in zip(blocks, stack.chunk(len(blocks), dim=-1), strict=True):
            own = tuple(block if "|" in a else a for a in axes)
            key = f"{prefix.split('.', 1)[1]}/*/{name}".replace(".", "/") + (f"[{block}]" if block else "")
            d = state[f"depth/{key}/M"]
            mixed = torch.einsum("lj,j...->l...", d, part)
            parts.append(torch.stack([dense(mixed[i], own, maps) for i in range(layers)]))
        for i, rows in enumerate(torch.cat(parts, dim=-1)):
            large[f"{prefix}.{i}.{name}"] = rows
    return large


CASES = {
    "gpt2": (
        "gpt2-lm",
        {"n_embd": 12, "n_head": 3, "n_inner": 17},
        gpt2_maps,
        GPT2_OUTER,
        GPT2_LAYER,
        "transformer.h",
    ),
    "llama": (
        "llama-lm",
        {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 17},
        llama_maps,
        LLAMA_OUTER,
        LLAMA_LAYER,
        "model.layers",
    ),
}


@pytest.mark.parametrize("layers", [2, 5])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ligo_writes_the_dense_formula(case, layers):
    name, sizes, maps_of, outer, layer, prefix = case
    small = build(name, dtype=torch.float64)
    depth_key = "n_layer" if name.startswith("gpt2") else "num_hidden_layers"
    large = build(name, seed=1, dtype=torch.float64, **sizes, **{depth_key: layers})
    op = lf.GrowthOperator(small, large, method="ligo", seed=3, tie=True)
    with torch.no_grad():
        for p in op.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    state = dict(op.state_dict())
    for family in layer:  # a depth that does not grow has no factors to learn: D = I
        blocks = ["[q]", "[k]", "[v]"] if "c_attn" in family else [""]
        for block in blocks:
            key = f"{prefix.split('.', 1)[1]}/*/{family}".replace(".", "/")
            state.setdefault(f"depth/{key}{block}/M", torch.eye(2, dtype=torch.float64))
    expected = expected_weights(small, state, maps_of(state), outer, layer, prefix, layers)
    functional = op()
    op.apply_()
    written = dict(large.named_parameters())
    assert written.keys() == expected.keys() == functional.keys()
    for parameter, want in expected.items():
        torch.testing.assert_close(written[parameter].detach(), want, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(functional[parameter].detach(), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("per_layer", ["none", "source", "target"])
@pytest.mark.parametrize("form", ["prefix", "dense"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied-maps", "free-maps"])
def test_functional_weights_are_the_written_ones(tie, form, per_layer):
    small = build("gpt2-lm", dtype=torch.float64)
    large = build("gpt2-lm", seed=1, dtype=torch.float64, n_embd=12, n_head=3, n_inner=17, n_layer=3)
    op = lf.GrowthOperator(small, large, tie=tie, form=form, per_layer=per_layer)
    weights = op()
    op.apply_()
    for name, p in large.named_parameters():
        torch.testing.assert_close(weights[name].detach(), p.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["gpt2-lm", "llama-lm"])
def test_per_layer_maps_are_the_dense_formula(name):
    """The fc bias with one U per source layer, and one per target layer."""
    key, sizes = (
        ("transformer.h.{}.mlp.c_fc.bias", {"n_inner": 17, "n_layer": 3})
        if name == "gpt2-lm"
        else ("model.layers.{}.mlp.gate_proj.weight", {"intermediate_size": 17, "num_hidden_layers": 3})
    )
    small = build(name, dtype=torch.float64)
    stack = torch.stack([small.get_parameter(key.format(j)).detach() for j in range(2)])
    for level in ("source", "target"):
        large = build(name, seed=1, dtype=torch.float64, **sizes)
        op = lf.GrowthOperator(small, large, per_layer=level)
        state = op.state_dict()
        d = state["depth/" + key.split(".", 1)[1].format("*").replace(".", "/") + "/M"]
        op.apply_()
        for i in range(3):
            if level == "source":
                grown = [below(state[f"width/ffn/{j}/out/C"]) @ stack[j] for j in range(2)]
                want = sum(d[i, j] * grown[j] for j in range(2))
            else:
                want = below(state[f"width/ffn/{i}/out/C"]) @ torch.einsum("j,j...->...", d[i], stack)
            got = large.get_parameter(key.format(i)).detach()
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["gpt2-lm", "llama-lm"])
def test_functional_weights_are_differentiable_in_the_small_ones(name):
    """Growth is linear: <G, W'(w + d)> - <G, W'(w)> is <gradient, d> exactly."""
    small = build(name, dtype=torch.float64)
    op = lf.GrowthOperator(small, lf.grow(small, width=2 * small.config.hidden_size, depth=3, method="copy"))
    weights = op()
    grads = {n: torch.randn_like(w) for n, w in weights.items()}
    before = sum((g * weights[n]).sum() for n, g in grads.items())
    slopes = torch.autograd.grad(before, list(small.parameters()))
    steps = [torch.randn_like(p) for p in small.parameters()]
    with torch.no_grad():
        for p, d in zip(small.parameters(), steps, strict=True):
            p.add_(d)
        after = sum((g * op()[n]).sum() for n, g in grads.items())
    expected = sum((s * d).sum() for s, d in zip(slopes, steps, strict=True))
    torch.testing.assert_close(after - before.detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TINY)
def test_the_small_model_and_a_built_operator_change_nothing(name):
    small = build(name)
    large = lf.grow(small, width=2 * small.config.hidden_size, depth=3, method="copy")
    before_small, before_large = snapshot(small), snapshot(large)
    op = lf.GrowthOperator(small, large)
    assert same(before_small, small) and same(before_large, large)
    op.apply_()
    assert same(before_small, small) and not same(before_large, large)
    assert op.apply_() is large
    assert all(p.is_leaf and p.requires_grad for p in large.parameters())


def test_every_element_of_the_large_model_is_written():
    """Poisoned with NaN first: no element is left, whatever the method."""
    small = build("gpt2-lm")
    for method in ("ligo", "copy", "tile", "pad", "net2net", "aki", "tile+interpolate", "tile+zero"):
        large = lf.grow(small, width=16, depth=4, method="copy")
        with torch.no_grad():
            for p in large.parameters():
                p.fill_(float("nan"))
        lf.GrowthOperator(small, large, method=method).apply_()
        left = [n for n, p in large.named_parameters() if not torch.isfinite(p).all()]
        assert not left, f"{method} leaves {left}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_have_float32_factors(dtype):
    small, large = build("gpt2-lm", dtype=dtype), build("gpt2-lm", seed=1, dtype=dtype, n_embd=16, n_head=4)
    op = lf.GrowthOperator(small, large)
    assert {p.dtype for p in op.parameters()} == {torch.float32}
    op.apply_()
    wide = lf.GrowthOperator(small.float(), large.float())
    wide.load_state_dict(op.state_dict())
    rounded = {n: p.detach().clone() for n, p in large.named_parameters()}
    wide.apply_()
    for name, p in large.named_parameters():
        torch.testing.assert_close(rounded[name], p.detach().to(dtype).float(), rtol=0, atol=0)


def test_state_dict_round_trip_is_bitwise():
    small = build("llama-lm")
    large = build("llama-lm", seed=1, hidden_size=32, num_attention_heads=8, num_key_value_heads=4)
    op = lf.GrowthOperator(small, large, seed=1)
    expected = snapshot(op.apply_())
    file = io.BytesIO()
    torch.save(op.state_dict(), file)
    file.seek(0)
    other = lf.GrowthOperator(small, large, seed=2)
    other.apply_()
    assert not same(expected, large)
    other.load_state_dict(torch.load(file))
    other.apply_()
    assert same(expected, large)


def test_moving_the_operator_changes_nothing_on_the_same_device():
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4)
    for method in ("ligo", "tile"):
        op = lf.GrowthOperator(small, large, method=method)
        expected = snapshot(op.apply_())
        assert op.to("cpu") is op
        op.apply_()
        assert same(expected, large)


@pytest.mark.parametrize("method", ["ligo", "tile", "net2net+ligo"])
def test_factors_in_double_precision(method):
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_layer=3)
    op = lf.GrowthOperator(small, large, method=method)
    expected = snapshot(op.apply_())
    op.to(torch.float64).apply_()
    assert {p.dtype for p in op.parameters()} <= {torch.float64}
    for name, p in large.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-5, atol=1e-6)


def test_a_copied_operator_has_its_own_factors():
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4)
    op = lf.GrowthOperator(small, large)
    twin = copy.deepcopy(op)
    expected = snapshot(op.apply_())
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    op.apply_()
    assert same(expected, large)
    twin.apply_()
    assert not same(expected, twin.large) and same(expected, large)


def test_operator_is_not_a_container_of_the_models():
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4)
    op = lf.GrowthOperator(small, large)
    assert not list(op.children())
    assert all(name.startswith(("width/", "depth/")) for name in op.state_dict())
    assert not {id(p) for p in op.parameters()} & {id(p) for m in (small, large) for p in m.parameters()}


def test_tied_maps_are_one_parameter():
    """embed's C serves every producer and consumer: the paper's table of ties."""
    op = lf.GrowthOperator(build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4), tie=True)
    width = {n: tuple(p.shape) for n, p in op.named_parameters() if n.startswith("width/")}
    assert width == {f"width/{axis}/out/C": (8, 8) for axis in ("embed", "k", "q", "v")}


@pytest.mark.parametrize("change", ["resized", "cast"])
def test_a_parameter_that_changed_since_is_named(change):
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4)
    op = lf.GrowthOperator(small, large)
    name = "transformer.h.1.mlp.c_fc.weight"
    if change == "resized":
        large.transformer.h[1].mlp.c_fc.weight = nn.Parameter(torch.zeros(16, 13))
        numbers = ("16, 13", "16, 12")
    else:
        large.transformer.h[1].mlp.c_fc.weight = nn.Parameter(torch.zeros(16, 12, dtype=torch.float64))
        numbers = ("float64", "float32")
    before = snapshot(large)
    with pytest.raises(lf.GrowthError) as error:
        op.apply_()
    assert all(text in str(error.value) for text in (name, *numbers)), error.value
    assert same(before, large)


def test_pullback_without_factors_or_gradients():
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4)
    with pytest.raises(lf.GrowthError, match=r"tile.*no factors"):
        lf.GrowthOperator(small, large, method="tile").pullback()
    with pytest.raises(lf.GrowthError, match="gradient"):
        lf.GrowthOperator(small, large).pullback()


def test_repr_names_axes_sizes_and_costs():
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_layer=3)
    text = repr(lf.GrowthOperator(small, large, seed=5))
    for part in (
        "method=ligo",
        "seed=5",
        "GPT2LMHeadModel",
        "layer: 2 -> 3",
        "embed: 8 -> 16",
        "ffn: 12",
        "GFLOPs",
    ):
        assert part in text, text
    assert "one per target layer" in repr(lf.GrowthOperator(small, large, per_layer="target"))
    assert "Selection / Selection" in repr(lf.GrowthOperator(small, large, method="tile"))


@pytest.mark.parametrize("method", ["ligo", "tile", "scratch"])
@pytest.mark.parametrize("name", ["gpt2-lm", "llama-lm", "vit-class"])
def test_repr_of_any_operator(name, method):
    small = build(name)
    large = lf.grow(small, width=2 * small.config.hidden_size, depth=3, method="copy")
    assert f"method={method}" in repr(lf.GrowthOperator(small, large, method=method))


def test_flops_of_an_ffn_by_hand():
    """Only ffn grows, 12 -> 18: C (6 x 12) meets 8 columns of fc, 1 of its bias, 8 rows of proj; 2 layers."""
    op = lf.GrowthOperator(build("gpt2-lm"), build("gpt2-lm", seed=1, n_inner=18))
    assert op.flops() == 2 * 2 * (6 * 12) * (8 + 1 + 8)
    assert op.flops("pullback") == op.flops()  # dC only: D is fixed and no other axis grows
    with pytest.raises(lf.GrowthError, match="training"):
        op.flops("training")


def test_flops_of_a_width_and_depth_growth_by_hand():
    """Every family of a GPT-2 (8, ffn 12, 2 layers) -> (16, ffn 24, 3 layers), by the formula of a product.

    Width first, on the 2 small layers: new rows (o2 - o1) o1 i1, then new columns o2 i1 (i2 - i1); the blend
    2 * 3 multiplies everything of the large family once per source layer.
    """
    op = lf.GrowthOperator(
        build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24, n_layer=3)
    )

    def matrix(o1, o2, i1, i2):
        rows_first = (o2 - o1) * o1 * i1 + o2 * i1 * (i2 - i1)
        cols_first = (i2 - i1) * i1 * o1 + i2 * o1 * (o2 - o1)
        return 2 * 2 * min(rows_first, cols_first) + 2 * 2 * 3 * o2 * i2

    def vector(n1, n2):
        return 2 * 2 * (n2 - n1) * n1 + 2 * 2 * 3 * n2

    layers = 4 * matrix(8, 16, 8, 16) + 2 * matrix(8, 16, 12, 24) + 9 * vector(8, 16) + vector(12, 24)
    outer = 2 * 8 * 8 * (19 + 10 + 1 + 1)  # wte, wpe, ln_f
    assert op.flops() == layers + outer
    assert op.flops() <= op.flops("pullback") <= 3 * op.flops()


@pytest.mark.parametrize("options", [{"tie": True}, {}, {"per_layer": "target"}], ids=str)
def test_flops_are_what_torch_counts(options, monkeypatch):
    """torch's counter does not know in-place products, so the factors' gradients are counted here."""
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24, n_layer=4)
    op = lf.GrowthOperator(small, large, **options)
    for p in large.parameters():
        p.grad = torch.randn_like(p)
    sums = []

    def add_product(out, g, x):
        sums.append(2 * g.shape[0] * g.shape[1] * x.shape[0])
        out.addmm_(g, x.t())

    def count(name):
        done = getattr(backend_torch, name)

        def counted(first, *args):  # one product and one sum for each source and element
            sources = first if name == "mix_layer" else args[0]
            if not isinstance(args[0] if name == "mix_layer" else args[1], Selection):
                # less a small product with an identity, which is counted already
                sums.append(2 * len(sources) * sources[0].numel() - 2 * len(sources) ** 2)
            return done(first, *args)

        monkeypatch.setattr(backend_torch, name, counted)

    count("mix_layer")
    count("unmix_layer")
    monkeypatch.setattr(lf.maps.structured, "add_product_", add_product)
    monkeypatch.setattr(cpu, "extension", None)  # torch counts nothing in compiled code
    with FlopCounterMode(display=False) as counter:
        op.apply_()
    assert counter.get_total_flops() + sum(sums) == op.flops("apply")
    for what in ("pullback, grown", "pullback"):
        sums.clear()
        with FlopCounterMode(display=False) as counter:
            op.pullback()
        assert counter.get_total_flops() + sum(sums) == op.flops(what)
        large.transformer.ln_f.bias.data = large.transformer.ln_f.bias.data.clone()  # no longer as written
    if "tie" in options:  # with maps per target layer only vectors could be read, and that saves nothing
        assert op.flops("pullback, grown") < op.flops("pullback")


def test_flops_of_fixed_maps_are_none():
    op = lf.GrowthOperator(build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4), method="tile")
    assert op.flops() == op.flops("pullback") == 0


def test_reported_maps():
    small, large = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_layer=3)
    op = lf.GrowthOperator(small, large)
    width, depth = op.width_maps(), op.depth_maps()
    assert {a: tuple(u.shape) for a, u in width.items()} == dict.fromkeys(("embed", "k", "q", "v"), (16, 8))
    torch.testing.assert_close(width["embed"], below(op.state_dict()["width/embed/out/C"]))
    assert len(depth) == 16 and {tuple(d.shape) for d in depth.values()} == {(3, 2)}
    torch.testing.assert_close(depth["h.*.ln_1.weight"].sum(1), torch.ones(3))
    kept = lf.GrowthOperator(small, large, method="tile+identity").depth_maps()["h.*.ln_1.weight"]
    assert kept.tolist() == [[1, 0], [0, 1], [0, 0]]


def test_grown_model_runs():
    small, large = build("vit-class"), build("vit-class", seed=1, hidden_size=16, num_attention_heads=4)
    lf.GrowthOperator(small, large).apply_()
    assert torch.isfinite(output(large, make_batch("vit-class"))).all()


def test_a_module_in_the_place_of_another_is_grown() -> None:
    """It is looked up anew, whatever was kept of the one before."""
    small = build("gpt2-lm", dtype=torch.float64)
    large, other = (build("gpt2-lm", seed=n, dtype=torch.float64, n_embd=16, n_head=4) for n in (1, 2))
    op = lf.GrowthOperator(small, large)
    op.apply_()
    wanted = large.transformer.wpe.weight.detach().clone()
    large.transformer.wpe = other.transformer.wpe
    op.apply_()
    assert torch.equal(large.transformer.wpe.weight, wanted)
    large.transformer.wpe.weight.grad = torch.ones_like(wanted)
    op.pullback()
    assert any(p.grad is not None and p.grad.any() for p in op.parameters())
