"""Bad input is one GrowthError that names axis or parameter and numbers; nothing was written before."""

import pytest
import torch
import transformers as hf
from models import TINY, TWICE, build, build_wider, make_batch, same, snapshot
from torch import nn

import ligo_fast as lf


def large_gpt2(**sizes):
    return build("gpt2-lm", seed=1, **{"n_embd": 16, "n_head": 4, "n_inner": 24, **sizes})


def refused(words, small, target, method="tile", **options):
    """Growing into the target raises with these words; both models keep every bit."""
    before, small_before = snapshot(target), snapshot(small)
    with pytest.raises(lf.GrowthError) as error:
        lf.grow(small, target=target, method=method, **options)
    assert isinstance(error.value, ValueError)
    missing = [w for w in words if w not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"
    assert keeps(before, target) and keeps(small_before, small)


def keeps(before, model):
    """As `same`, for parameters that may be NaN or on the meta device."""
    now = snapshot(model)
    return before.keys() == now.keys() and all(
        t.is_meta or torch.equal(torch.nan_to_num(before[n], 7.5), torch.nan_to_num(t, 7.5))
        for n, t in now.items()
    )


def sizes_refused(words, small, **growth):
    """The same for sizes given by keyword: no target to write to, the small model keeps every bit."""
    before = snapshot(small)
    with pytest.raises(lf.GrowthError) as error:
        lf.grow(small, **{"method": "copy", **growth})
    missing = [w for w in words if w not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"
    assert same(before, small)


def test_growth_error_is_a_value_error():
    assert issubclass(lf.GrowthError, ValueError)


def test_unknown_model_type():
    small = hf.T5EncoderModel(hf.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9))
    target = hf.T5EncoderModel(
        hf.T5Config(d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=4, vocab_size=9)
    )
    refused(["T5EncoderModel", "'t5'", "gpt2", "register_architecture"], small, target)


def test_a_model_without_a_config():
    refused(["Linear", "register_architecture"], nn.Linear(2, 2), nn.Linear(4, 4))


def test_uncovered_parameter():
    small, target = build("gpt2-lm"), large_gpt2()
    small.adapter = nn.Parameter(torch.zeros(3))
    refused(["gpt2", "adapter"], small, target)


def test_uncovered_head():
    config = TINY["vit"].make_config
    target = hf.ViTForMaskedImageModeling(config(hidden_size=16, num_attention_heads=4))
    refused(["vit", "decoder.0.weight", "2 of"], hf.ViTForMaskedImageModeling(config()), target)


def test_uncovered_parameter_of_the_target():
    target = large_gpt2()
    target.transformer.h[0].extra = nn.Parameter(torch.zeros(3))
    refused(["transformer.h.0.extra"], build("gpt2-lm"), target)


def test_a_parameter_that_only_one_model_has():
    target = build(
        "llama-lm", seed=1, hidden_size=32, num_attention_heads=8, num_key_value_heads=4, attention_bias=True
    )
    refused(["self_attn.q_proj.bias", "source"], build("llama-lm"), target)


def test_models_of_two_classes():
    refused(["GPT2LMHeadModel", "GPT2Model"], build("gpt2-lm"), build("gpt2", n_embd=16, n_head=4))


def test_tied_and_untied_heads():
    target = build("gpt2-lm", seed=1, n_embd=16, n_head=4, tie_word_embeddings=False)
    refused(["only the source's", "tie_word_embeddings=True"], build("gpt2-lm"), target)
    small = build("gpt2-lm")
    small.lm_head.weight = nn.Parameter(small.lm_head.weight.detach().clone())
    refused(["only the target's", "tie_word_embeddings=False"], small, build("gpt2-lm", n_embd=16, n_head=4))
    assert lf.grow(small, width=16, method="tile", tie_word_embeddings=False).lm_head is not None


def test_layers_that_are_one_module():
    small = build("llama-lm")
    small.model.layers[1] = small.model.layers[0]
    with pytest.raises(lf.GrowthError, match=r"^parameter layers\.\*.*: the source has it 1 times, .* say 2"):
        lf.grow(small, width=32, method="tile")


def test_a_model_inside_another():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = build("gpt2-lm")

    with pytest.raises(
        lf.GrowthError, match=r"no architecture table for Wrapper.*Its \.base is a GPT2LMHead"
    ):
        lf.grow(Wrapper(), width=16)


@pytest.mark.parametrize("option", [{"source": "folder"}, {"precision": "tf32"}], ids=str)
@pytest.mark.parametrize("sizes", [{"width": 16}, {"target": TINY["gpt2-lm"].make_config(n_embd=16)}])
def test_options_of_the_operator_alone(option, sizes):
    with pytest.raises(lf.GrowthError, match=f"^{next(iter(option))}: of GrowthOperator, not of grow"):
        lf.grow(build("gpt2-lm"), **sizes, **option)


SHRINKING = {
    "embed": ({"n_embd": 4, "n_head": 1}, ["embed", "4", "8"]),
    "ffn": ({"n_inner": 9}, ["ffn", "9", "12"]),
    "layer": ({"n_layer": 1}, ["layer", "1", "2"]),
    "head_dim": ({"n_embd": 8, "n_head": 4}, ["head_dim", "2", "4"]),
    "head": ({"n_embd": 8, "n_head": 1}, ["head", "1", "2"]),
}


@pytest.mark.parametrize("sizes, words", SHRINKING.values(), ids=SHRINKING)
def test_target_smaller_than_the_source(sizes, words):
    refused(words, build("gpt2-lm"), build("gpt2-lm", seed=1, **sizes))
    sizes_refused(words, build("gpt2-lm"), **sizes)


@pytest.mark.parametrize(
    "growth, words",
    [
        ({"width": 4}, ["embed", "4", "8"]),
        ({"width": 0}, ["embed", "0"]),
        ({"width": -4}, ["embed", "-4"]),
        ({"depth": 1}, ["layer", "1", "2"]),
        ({"depth": 0}, ["layer", "0"]),
        ({"depth": -1}, ["layer", "-1"]),
    ],
    ids=lambda v: "-".join(f"{k}{n}" for k, n in v.items()) if isinstance(v, dict) else "",
)
def test_sizes_below_the_source(growth, words):
    sizes_refused(words, build("gpt2-lm"), **growth)


def test_width_that_is_no_multiple_of_head_dim():
    sizes_refused(["head", "10", "4", "say n_head"], build("gpt2-lm"), width=10)


@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "llama-lm"])
def test_heads_that_do_not_divide_the_width(name):
    """Refused by name and numbers, whether HF's config, its model or this package notices first."""
    heads = {"n_head": 5} if name == "gpt2-lm" else {"num_attention_heads": 5}
    heads |= {"num_key_value_heads": 5} if name == "llama-lm" else {}
    sizes_refused(["head", "24", "5"], build(name), width=24, **heads)


def test_heads_that_do_not_divide_in_a_config():
    config = TINY["gpt2-lm"].make_config(n_embd=12, n_head=5)
    sizes_refused(["head", "12", "5"], build("gpt2-lm"), target=config)


def test_ffn_that_does_not_come_out_whole():
    sizes_refused(["ffn", "13", "12/8", "say n_inner"], build("gpt2-lm", n_inner=13), width=12)


def test_query_heads_that_do_not_divide_over_key_value_heads():
    sizes_refused(["head", "8", "3"], build("llama-lm"), num_attention_heads=8, num_key_value_heads=3)
    target = build("llama-lm", seed=1, num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    target.config.num_key_value_heads = 3
    refused(["head", "8", "3"], build("llama-lm"), target)


def test_key_value_heads_that_do_not_come_out_whole():
    sizes_refused(
        ["kv_head", "2", "5/4", "say num_key_value_heads"], build("llama-lm"), width=20, intermediate_size=24
    )


def test_a_group_that_shrinks():
    target = build("llama-lm", seed=1, num_attention_heads=8, num_key_value_heads=8, head_dim=4)
    refused(["group", "1", "2"], build("llama-lm"), target)


def test_fewer_key_value_heads():
    target = build("llama-lm", seed=1, num_attention_heads=8, num_key_value_heads=1, head_dim=4)
    refused(["kv_head", "1", "2"], build("llama-lm"), target)


@pytest.mark.parametrize("name", ["llama-lm", "mistral-lm", "qwen2-lm", "qwen3-lm"])
def test_head_dim_cannot_grow_under_rotary_positions(name):
    small = build(name)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {} if name == "qwen2-lm" else {"head_dim": 8}
    refused(["head_dim", "rotary", "4", "8"], small, build(name, seed=1, **sizes))
    sizes_refused(["head_dim", "rotary", "4", "8"], small, target=TINY[name].make_config(**sizes))


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"n_embd": 12, "n_head": 3}, ["tile", "embed", "12", "8"]),
        ({"n_inner": 17}, ["tile", "ffn", "17", "12"]),
        ({"n_embd": 16, "n_head": 4, "n_inner": 25}, ["tile", "ffn", "25", "12"]),
    ],
    ids=["embed", "ffn", "ffn-beside-embed"],
)
def test_tile_needs_whole_multiples(sizes, words):
    refused(words, build("gpt2-lm"), build("gpt2-lm", seed=1, **sizes))


@pytest.mark.parametrize(
    "name, sizes, words",
    [
        ("gpt2-lm", {"vocab_size": 23}, ["vocab", "19", "23", "wte.weight"]),
        ("gpt2-lm", {"n_positions": 12}, ["position", "10", "12", "wpe.weight"]),
        ("bert-mlm", {"max_position_embeddings": 16}, ["position", "10", "16", "position_embeddings"]),
        ("bert-mlm", {"type_vocab_size": 3}, ["segment", "2", "3", "token_type"]),
        ("llama-lm", {"vocab_size": 23}, ["vocab", "19", "23", "embed_tokens.weight"]),
        ("vit-class", {"image_size": 12}, ["position", "5", "10", "position_embeddings"]),
        ("vit-class", {"patch_size": 2}, ["position", "5", "17", "position_embeddings"]),
        ("vit-class", {"num_labels": 7}, ["label", "5", "7", "classifier"]),
        ("vit-class", {"num_channels": 1}, ["channel", "3", "1", "projection.weight"]),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else (v if isinstance(v, str) else ""),
)
def test_a_size_without_a_rule(name, sizes, words):
    refused(words, build(name), build(name, seed=1, **sizes), method="copy")


def test_rotary_positions_have_no_table_to_resize():
    large = lf.grow(build("llama-lm"), depth=3, max_position_embeddings=64, method="stack")
    assert large.config.max_position_embeddings == 64


@pytest.mark.parametrize("which", ["source", "target"])
def test_mixed_dtypes(which):
    small, target = build("gpt2-lm"), large_gpt2()
    model = small if which == "source" else target
    model.transformer.ln_f.to(torch.float64)
    refused([which, "dtypes", "float32", "float64"], small, target)


@pytest.mark.parametrize("which", ["source", "target"])
def test_mixed_devices(which):
    small, target = build("gpt2-lm"), large_gpt2()
    model = small if which == "source" else target
    model.transformer.ln_f.to("meta")
    refused([which, "devices", "cpu", "meta"], small, target)


def test_two_dtypes():
    refused(["float32", "float64"], build("gpt2-lm"), large_gpt2().double())


def test_a_source_on_the_meta_device():
    with torch.device("meta"):
        small = TINY["gpt2-lm"].cls(TINY["gpt2-lm"].make_config())
    refused(["source", "meta"], small, large_gpt2())


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_parameters_that_are_not_floating_point():
    small, target = (m.requires_grad_(False).to(torch.complex64) for m in (build("gpt2-lm"), large_gpt2()))
    refused(["complex64"], small, target)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value):
    small = build("gpt2-lm")
    with torch.no_grad():
        small.transformer.h[1].mlp.c_fc.weight[0, :3] = value
    refused(["transformer.h.1.mlp.c_fc.weight", "3", "NaN"], small, large_gpt2())


def test_grown_values_beyond_float16():
    small = build("gpt2-lm", dtype=torch.float16)
    with torch.no_grad():
        small.transformer.h[0].mlp.c_fc.weight.fill_(6e4)
    with pytest.warns(UserWarning, match="without data"), pytest.raises(lf.GrowthError) as error:
        lf.grow(small, width=16, method="ligo", width_init="random", width_noise=9.0)
    assert "h.0.mlp.c_fc.weight of the target, in float16, has " in str(error.value)
    assert lf.grow(small, width=16, method="copy").dtype == torch.float16


WEIGHTS = {
    "float8": (lambda p: p.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "sparse": (lambda p: p.to_sparse(), "torch.sparse_coo"),
}


@pytest.mark.parametrize("make, kind", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_torch_does_not_compute_with(make, kind):
    small = build("llama-lm")
    for module in small.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if kind.startswith("torch.float8") or (name == "weight" and p.dim() == 2):
                setattr(module, name, torch.nn.Parameter(make(p.detach()), requires_grad=False))
    with pytest.raises(lf.GrowthError, match=f"^parameter .* of the source is {kind}"):
        lf.grow(small, depth=3, method="stack")


def test_a_loss_without_gradient():
    def detached(model, batch):
        return model(**batch).loss.detach()

    batch = make_batch("gpt2-lm")
    refused(["loss", "gradient"], build("gpt2-lm"), large_gpt2(), method="ligo", data=[batch], loss=detached)


@pytest.mark.parametrize("empty", [[], iter([])], ids=["list", "iterator"])
def test_an_empty_data_iterator(empty):
    refused(["data", "empty"], build("gpt2-lm"), large_gpt2(), method="ligo", data=empty)


def test_no_steps():
    data = [make_batch("gpt2-lm")]
    refused(["steps=0"], build("gpt2-lm"), large_gpt2(), method="ligo", data=data, steps=0)


@pytest.mark.parametrize(
    "method", ["nonsense", "tile+nonsense", "stack+tile", ("tile",) * 3, "", ()], ids=str
)
def test_unknown_methods(method):
    refused(["unknown method", "tile", "stack"], build("gpt2-lm"), large_gpt2(), method=method)


@pytest.mark.parametrize("method", [None, ["tile", None], 3.5])
def test_methods_that_are_no_names(method):
    with pytest.raises(lf.GrowthError, match="method"):
        lf.GrowthOperator(build("gpt2-lm"), large_gpt2(), method=method)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"width_init": "nonsense"}, ["width_init='nonsense'", "random", "selection", "tile"]),
        ({"depth_init": "nonsense"}, ["depth_init='nonsense'", "stack", "interpolate"]),
        ({"form": "nonsense"}, ["form='nonsense'", "prefix", "dense"]),
        ({"per_layer": "nonsense"}, ["per_layer='nonsense'", "target", "source"]),
        ({"noise": 0.1}, ["noise"]),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_options_of_ligo(options, words):
    refused(words, build("gpt2-lm"), large_gpt2(n_layer=3), method="ligo", **options)


@pytest.mark.parametrize("method", ["random+stack", "scratch"])
def test_noise_on_units_that_start_afresh(method):
    words = ["noise=0.5", repr(method.split("+")[0]), "net2net"]
    refused(words, build("gpt2-lm"), large_gpt2(), method=method, noise=0.5)


def test_an_option_of_another_method():
    with pytest.raises(lf.GrowthError, match=r"tie.*tile\+stack"):
        lf.GrowthOperator(build("gpt2-lm"), large_gpt2(), method="tile", tie=False)


def test_nothing_to_grow_to():
    sizes_refused(["width=", "depth=", "target="], build("gpt2-lm"))


def test_a_keyword_that_the_config_does_not_have():
    sizes_refused(["GPT2Config", "hidden_layers"], build("gpt2-lm"), width=16, hidden_layers=3)


@pytest.mark.parametrize("options", [{"width": 16}, {"depth": 3}, {"n_inner": 24}, {"width": 0}], ids=str)
def test_sizes_beside_a_target(options):
    refused(["target=", *options], build("gpt2-lm"), large_gpt2(), **options)


@pytest.mark.parametrize(
    "config", [hf.BertConfig(), "gpt2-large", 3, {"n_embd": 16}], ids=["bert", "str", "int", "dict"]
)
def test_a_target_of_another_kind(config):
    sizes_refused(["GPT2"], build("gpt2-lm"), target=config)


@pytest.mark.parametrize(
    "name, other", [("llama-lm", "mistral-lm"), ("bert-mlm", "roberta-mlm"), ("vit", "deit")]
)
def test_a_config_of_a_sibling_family(name, other):
    config = TINY[other].make_config()
    sizes_refused([type(config).__name__], build(name), target=config)


def test_a_width_that_is_no_number():
    sizes_refused(["embed", "16.0"], build("gpt2-lm"), width=16.0)


def test_a_config_that_does_not_describe_the_module():
    target = large_gpt2()
    target.config.n_inner = 36
    refused(["c_fc.weight", "24", "36"], build("gpt2-lm"), target)


def test_layers_that_do_not_match_the_config():
    target = large_gpt2(n_layer=3)
    del target.transformer.h[2]
    refused(["ln_1.weight", "2", "3"], build("gpt2-lm"), target)


def test_a_frozen_model_has_no_gradient_to_learn_from():
    target = large_gpt2().requires_grad_(False)
    data = [make_batch("gpt2-lm")]
    refused(["gradient"], build("gpt2-lm"), target, method="ligo", data=data)


CONVOLUTION = "vit.embeddings.patch_embeddings.projection.weight"


@pytest.mark.parametrize("method", ["tile", "ligo"])
@pytest.mark.parametrize("which", ["source", "target"])
def test_parameters_in_channels_last(method, which):
    small, target = build("vit-class"), build_wider("vit-class", 3, sizes=TWICE)
    (small if which == "source" else target).to(memory_format=torch.channels_last)
    p = (small if which == "source" else target).get_parameter(CONVOLUTION)
    refused([CONVOLUTION, str(list(p.shape)), str(p.stride()), "contiguous"], small, target, method=method)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("method", ["tile", "ligo"])
def test_parameters_that_are_channels_last_only_later(method, backend, monkeypatch):
    monkeypatch.setenv("LIGO_FAST_BACKEND", backend)
    small, target = build("vit-class"), build_wider("vit-class", 3, sizes=TWICE)
    op = lf.GrowthOperator(small, target, method=method)
    op.apply_()
    target.to(memory_format=torch.channels_last)
    before = snapshot(target)
    with pytest.raises(lf.GrowthError, match=CONVOLUTION):
        op.apply_()
    assert same(before, target)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("method", ["net2net", "ligo"])
def test_a_target_whose_values_share_memory(method, later, backend, monkeypatch):
    monkeypatch.setenv("LIGO_FAST_BACKEND", backend)
    small, target = build("gpt2-lm"), build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24)
    op = lf.GrowthOperator(small, target, method=method)
    wpe = target.transformer.wpe
    wpe.weight = torch.nn.Parameter(wpe.weight.detach()[:1].expand(wpe.weight.shape))
    before = snapshot(target)
    with pytest.raises(lf.GrowthError, match=r"wpe\.weight .*\(0, 1\).*contiguous"):
        op.apply_() if later else lf.GrowthOperator(small, target, method=method)
    assert same(before, target)


def test_a_source_whose_values_share_memory():
    small = build("gpt2-lm")
    wpe = small.transformer.wpe
    plain, wpe.weight = wpe.weight, torch.nn.Parameter(wpe.weight.detach()[:1].expand(wpe.weight.shape))
    large = lf.grow(small, width=16, method="net2net")
    wpe.weight = torch.nn.Parameter(plain.detach()[:1].repeat(len(plain), 1))
    assert same(snapshot(lf.grow(small, width=16, method="net2net")), large)


@pytest.mark.parametrize("release", [False, True])
def test_a_sparse_gradient(release):
    target = large_gpt2()
    target.transformer.wpe.sparse = True
    op = lf.GrowthOperator(build("gpt2-lm"), target)
    opt = lf.GrowthOptimizer(op, release_grads=release)
    before = snapshot(target)
    with pytest.raises(lf.GrowthError, match=r"gradient of parameter transformer\.wpe\.weight .*sparse"):
        target(**make_batch("gpt2-lm")).loss.backward()
        opt.step()
    assert same(before, target)
    assert release or all(p.grad is None or not p.grad.any() for p in op.parameters())


def test_a_gradient_in_channels_last_is_read():
    grads = []
    for layout in (torch.contiguous_format, torch.channels_last):
        target = build_wider("vit-class", 3, sizes=TWICE)
        op = lf.GrowthOperator(build("vit-class"), target)
        op.apply_()
        target(**make_batch("vit-class")).loss.backward()
        p = target.get_parameter(CONVOLUTION)
        p.grad = p.grad.to(memory_format=layout)
        op.pullback()
        grads.append([p.grad for p in op.parameters()])
    for want, got in zip(*grads, strict=True):
        assert torch.equal(want, got)


@pytest.mark.parametrize("method", ["stack", "ligo", "random+stack"])
def test_a_target_made_of_the_sources_layers(method):
    small = build("gpt2-lm")
    target = build("gpt2-lm", seed=1, n_layer=4)
    for n in range(2):
        target.transformer.h[2 + n] = small.transformer.h[n]
    words = ["transformer.h.2.ln_1.weight", "source's transformer.h.0.ln_1.weight", "copy"]
    refused(words, small, target, method=method)


def test_a_target_in_one_buffer_with_the_source():
    """Their parts of it must be apart, no more."""
    small, target = build("gpt2-lm"), build("gpt2-lm", seed=1, n_layer=4)
    parameters = [*small.parameters(), *target.parameters()]
    buffer = torch.cat([p.detach().flatten() for p in parameters])
    for p, part in zip(parameters, buffer.split([p.numel() for p in parameters]), strict=True):
        p.data = part.view_as(p)
    before = snapshot(small)
    lf.grow(small, target=target, method="stack")
    assert same(before, small)
    target.transformer.ln_f.bias.data = small.transformer.h[0].mlp.c_fc.bias.data[2:10]
    refused(["transformer.ln_f.bias", "source's transformer.h.0.mlp.c_fc.bias"], small, target, "stack")


@pytest.mark.parametrize("rows", [1, 4], ids=["one row", "overlapping rows"])
@pytest.mark.parametrize("method", ["net2net", "ligo", "pad+zero"])
def test_a_target_whose_elements_share_memory(method, rows):
    small, target = build("gpt2-lm"), large_gpt2()
    p = target.transformer.wpe.weight
    strides = (0, 1) if rows == 1 else (3, 1)
    target.transformer.wpe.weight = nn.Parameter(torch.zeros(200).as_strided(p.shape, strides))
    refused(
        ["transformer.wpe.weight", str(list(p.shape)), str(strides), "share memory"], small, target, method
    )


def test_a_target_whose_elements_come_to_share_memory():
    small, target = build("gpt2-lm"), large_gpt2()
    op = lf.GrowthOperator(small, target, method="net2net")
    op.apply_()
    p = target.transformer.wpe.weight
    p.data = p.detach()[:1].clone().expand(p.shape)
    before = snapshot(target)
    with torch.no_grad():
        small.transformer.wte.weight.add_(1)
    with pytest.raises(lf.GrowthError, match=r"wpe.weight.*strides \(0, 1\)"):
        op.apply_()
    assert same(before, target)


def test_a_source_whose_elements_share_memory_is_only_read():
    small = build("gpt2-lm")
    p = small.transformer.wpe.weight
    small.transformer.wpe.weight = nn.Parameter(p.detach()[:1].expand(p.shape))
    large = lf.grow(small, width=16, method="tile")
    assert torch.equal(large.transformer.wpe.weight[3], p[0].repeat(2))


def test_a_refused_meta_target_gets_no_memory():
    with torch.device("meta"):
        target = TINY["gpt2-lm"].cls(TINY["gpt2-lm"].make_config(n_embd=12, n_head=3))
    refused(["tile", "embed", "12", "8"], build("gpt2-lm"), target)
    assert all(p.is_meta for p in target.parameters())


def test_a_meta_target_whose_buffers_nobody_can_compute():
    class Config:
        model_type = "plain"
        width, layers = 4, 1

    class Plain(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config
            self.weight = nn.Parameter(torch.randn(config.width))
            self.register_buffer("table", torch.arange(config.width))

    lf.register_architecture(
        lf.Architecture(
            "plain-for-errors",
            sizes={"embed": lf.Size("width"), "layer": lf.Size("layers")},
            parameters={"weight": "embed"},
            match=lambda model: type(model) is Plain,
        )
    )
    wide = Config()
    wide.width = 8
    with torch.device("meta"):
        target = Plain(wide)
    refused(["table", "meta"], Plain(Config()), target)
    built = Plain(wide)
    assert lf.grow(Plain(Config()), target=built, method="tile") is built
