"""Function-preserving growth: exact to 1e-10 in float64 and 1e-5 in float32, by running both models."""

import pytest
import torch
from models import POST_NORM, ROTARY, TINY, build, exact_rms_norm, family, make_batch, same, snapshot

import ligo_fast as lf

# factor of the width (None: unchanged), layers, method
PRE_NORM_GROWTHS = {
    "tile-2x": (2, None, "tile"),
    "tile-3x": (3, None, "tile"),
    "pad-1.5x": (1.5, None, "pad"),
    "pad-2.5x": (2.5, None, "pad"),
    "depth-zero": (None, 5, "zero"),
    "depth-identity": (None, 5, "identity"),
    "tile-2x-zero": (2, 3, "tile+zero"),
    "tile-2x-identity": (2, 5, "tile+identity"),
    "pad-1.5x-zero": (1.5, 5, "pad+zero"),
    "pad-2.5x-identity": (2.5, 3, "pad+identity"),
}
POST_NORM_GROWTHS = {name: PRE_NORM_GROWTHS[name] for name in ("tile-2x", "tile-3x")}
EXACT = [
    pytest.param(name, *growth, id=f"{name}-{label}")
    for name in TINY
    for label, growth in (POST_NORM_GROWTHS if family(name) in POST_NORM else PRE_NORM_GROWTHS).items()
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@torch.no_grad()
def check_exact(name, dtype=torch.float64, small=None, **growth):
    """Every output of the grown model is the small one's; of a wider output, its first units."""
    small = build(name, dtype=dtype) if small is None else small
    batch, before = make_batch(name, dtype=dtype), snapshot(small)
    with exact_rms_norm():
        large = lf.grow(small, **growth)
        certificate = lf.certify(small, large, batch)
        wants, gots = small(**batch), large(**batch)
    assert same(before, small)
    compared = []
    for key, want in wants.items():
        if isinstance(want, torch.Tensor) and want.is_floating_point():
            got = gots[key][..., : want.shape[-1]] if want.dim() else gots[key]
            error, size = float((want - got).abs().max()), max(1.0, float(want.abs().max()))
            assert error <= TOLERANCE[dtype] * size, f"{key} differs by {error:.3g}"
            compared.append(key)
    assert {"logits", "last_hidden_state"} & set(compared)
    assert certificate.exact, certificate
    assert all(rule.holds for rule in certificate.rules), certificate
    return small, large, certificate


def wider(small, factor):
    return None if factor is None else int(small.config.hidden_size * factor)


@pytest.mark.parametrize("name, factor, depth, method", EXACT)
def test_exact_in_float64(name, factor, depth, method):
    small = build(name, dtype=torch.float64)
    check_exact(name, small=small, width=wider(small, factor), depth=depth, method=method)


@pytest.mark.parametrize("name, factor, depth, method", EXACT)
def test_exact_in_float32(name, factor, depth, method):
    small = build(name)
    check_exact(name, torch.float32, small, width=wider(small, factor), depth=depth, method=method)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", [n for n in TINY if family(n) not in ROTARY])
def test_head_dim_grows_by_tiling(name, factor):
    small = build(name, dtype=torch.float64)
    heads = small.config.num_attention_heads
    target = TINY[name].make_config(hidden_size=8 * factor, num_attention_heads=heads)
    _, large, _ = check_exact(name, small=small, target=target, method="tile")
    assert large.config.hidden_size // large.config.num_attention_heads == 4 * factor


@pytest.mark.parametrize("name", [n for n in TINY if family(n) not in (*ROTARY, *POST_NORM)])
def test_head_dim_grows_by_padding(name):
    small = build(name, dtype=torch.float64)
    config = small.config
    eps = "layer_norm_epsilon" if family(name) == "gpt2" else "layer_norm_eps"
    target = TINY[name].make_config(hidden_size=12, num_attention_heads=2)
    setattr(target, eps, getattr(config, eps) * 8 / 12)
    check_exact(name, small=small, target=target, method="pad")


@pytest.mark.parametrize("name", [n for n in TINY if family(n) not in ROTARY])
def test_heads_and_head_dim_grow_together(name):
    target = TINY[name].make_config(hidden_size=32, num_attention_heads=4)
    check_exact(name, target=target, method="tile")


GQA = {
    "kv-heads-grow": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "group-grows": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "kv-heads-and-group-grow": {"num_attention_heads": 16, "num_key_value_heads": 4},
}
EXPLICIT_HEAD_DIM = ["llama-lm", "llama-tied", "mistral-lm", "qwen3-lm"]


@pytest.mark.parametrize("method", ["tile", "net2net", "pad"])
@pytest.mark.parametrize("heads", GQA.values(), ids=GQA)
@pytest.mark.parametrize("name", EXPLICIT_HEAD_DIM)
def test_grouped_queries_keep_their_key_value_head(name, heads, method):
    _, large, _ = check_exact(name, method=method, **heads)
    attention = large.model.layers[0].self_attn
    assert attention.q_proj.out_features == 4 * heads["num_attention_heads"]
    assert attention.k_proj.out_features == 4 * heads["num_key_value_heads"]


@pytest.mark.parametrize("heads", GQA.values(), ids=GQA)
def test_grouped_queries_with_a_head_dim_that_follows_the_width(heads):
    check_exact("qwen2-lm", method="tile", width=4 * heads["num_attention_heads"], **heads)


@pytest.mark.parametrize("name", ["llama-lm", "qwen2-lm", "qwen3-lm"])
def test_width_grows_with_the_group_and_key_value_heads_fixed(name):
    width = 2 * TINY[name].sizes["hidden_size"]
    _, large, _ = check_exact(name, width=width, num_key_value_heads=2, method="tile")
    assert (large.config.num_attention_heads, large.config.num_key_value_heads) == (8, 2)


HEADS = [((4, 1), (8, 1)), ((4, 1), (8, 2)), ((4, 4), (8, 4)), ((4, 4), (8, 8))]


@pytest.mark.parametrize("source, target", HEADS, ids=["group-of-all", "all-kv", "group", "no-group"])
def test_single_and_full_key_value_heads(source, target):
    keys = ("num_attention_heads", "num_key_value_heads")
    small = build("llama-lm", dtype=torch.float64, **dict(zip(keys, source, strict=True)))
    check_exact("llama-lm", small=small, method="tile", **dict(zip(keys, target, strict=True)))


@pytest.mark.parametrize("method", ["net2net", "pad"])
@pytest.mark.parametrize("name", TINY)
def test_ffn_alone_grows_to_any_size(name, method):
    key = "n_inner" if family(name) == "gpt2" else "intermediate_size"
    check_exact(name, method=method, **{key: 17})


@pytest.mark.parametrize("method", ["tile", "pad"])
@pytest.mark.parametrize(
    "name", ["gpt2-lm", "llama-lm", "llama-tied", "qwen3-lm", "vit-class", "deit-teacher"]
)
def test_noise_changes_no_output(name, method):
    width = 2 * TINY[name].sizes.get("hidden_size", 8)
    _, noisy, _ = check_exact(name, width=width, method=method, noise=0.5)
    clean = lf.grow(build(name, dtype=torch.float64), width=width, method=method)
    assert any(not torch.equal(a, b) for a, b in zip(noisy.parameters(), clean.parameters(), strict=True))


@pytest.mark.parametrize("method", ["tile+identity", "pad+identity", "tile+zero", "pad+zero"])
@pytest.mark.parametrize("name", ["gpt2-lm", "llama-lm", "vit-class"])
def test_noise_leaves_new_layers_that_add_nothing_at_zero(name, method):
    width = 2 * TINY[name].sizes.get("hidden_size", 8)
    _, large, _ = check_exact(name, width=width, depth=4, method=method, noise=0.5)
    zeros = [n for n, p in large.named_parameters() if p.dim() == 2 and not p.any()]
    assert len(zeros) == 2 * 2, "the output projections of two layers"


@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "roberta-mlm", "llama-tied", "qwen3-lm"])
def test_tied_embeddings_stay_tied(name):
    width = 2 * TINY[name].sizes.get("hidden_size", 8)
    _, large, _ = check_exact(name, width=width, method="tile")
    assert large.get_output_embeddings().weight is large.get_input_embeddings().weight


def test_target_with_another_eps_is_named():
    small = build("gpt2-lm", dtype=torch.float64)
    target = TINY["gpt2-lm"].make_config(n_embd=12, n_head=3, n_inner=18)
    large = lf.grow(small, target=target, method="pad")
    certificate = lf.certify(small, large, make_batch("gpt2-lm"))
    assert [r.name for r in certificate.rules if not r.holds] == ["norm eps"]
    assert not certificate.exact


@pytest.mark.parametrize("factor", [1.5, 2.5])
def test_padding_scales_what_a_head_norm_sees(factor):
    """Qwen3's q_norm and k_norm have the eps that pad rescales for the residual norms: q and k follow."""
    small = build("qwen3-lm", dtype=torch.float64, rms_norm_eps=0.3)
    _, large, _ = check_exact("qwen3-lm", small=small, width=wider(small, factor), method="pad")
    assert large.config.rms_norm_eps == pytest.approx(0.3 / factor)
