"""`certify`: differences and losses as measured by hand, and the rule that broke when one did."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
import transformers
from models import TINY, build, exact_rms_norm, family, loss_of, make_batch, output, same, snapshot
from torch import nn

import ligo_fast as lf
from ligo_fast import architectures


def certify(name, small=None, batch=None, dtype=torch.float64, **growth):
    small = build(name, dtype=dtype) if small is None else small
    with exact_rms_norm():
        large = lf.grow(small, **growth)
        return lf.certify(small, large, make_batch(name, dtype=dtype) if batch is None else batch)


def broken(certificate):
    return {rule.name for rule in certificate.rules if not rule.holds}


BROKEN = {
    "copy": ("gpt2-lm", {"width": 16, "method": "copy"}, {"V^T U = I on embed", "nonlinearity", "attention"}),
    "stack": ("gpt2-lm", {"depth": 4, "method": "stack"}, {"new layers add zero"}),
    "interpolate": ("llama-lm", {"depth": 4, "method": "interpolate"}, {"new layers add zero"}),
    "net2net": ("gpt2-lm", {"width": 12, "method": "net2net"}, {"norm statistics", "tied head"}),
    "net2net-rms": ("llama-lm", {"width": 32, "method": "net2net"}, {"norm statistics"}),
    "post-norm-depth": ("bert-mlm", {"depth": 4, "method": "zero"}, {"pre-norm depth"}),
    "post-norm-identity": ("roberta-mlm", {"depth": 3, "method": "identity"}, {"pre-norm depth"}),
    "post-norm-pad": ("bert", {"width": 12, "method": "pad"}, {"post-norm stream"}),
    "ligo": (
        "gpt2-lm",
        {"width": 16, "method": "ligo", "tie": True},
        {"V^T U = I on embed", "nonlinearity", "attention"},
    ),
    "ligo-depth": ("gpt2-lm", {"depth": 3, "method": "ligo"}, {"new layers add zero"}),
    "random-ffn": ("gpt2-lm", {"n_inner": 17, "method": "random"}, None),
    "scratch-ffn": ("gpt2-lm", {"n_inner": 17, "method": "scratch"}, None),
    "scratch-depth": ("gpt2-lm", {"depth": 3, "method": "scratch"}, None),
    "random-depth": ("gpt2-lm", {"depth": 3, "method": "random"}, {"new layers add zero"}),
    "aki-ffn": ("gpt2-lm", {"n_inner": 17, "method": "aki"}, None),
    "aki": ("gpt2-lm", {"width": 16, "method": "aki"}, None),
}


@pytest.mark.filterwarnings("ignore:method .*without data")
@pytest.mark.parametrize("name, growth, rules", BROKEN.values(), ids=BROKEN)
def test_the_rule_that_broke_is_named(name, growth, rules):
    certificate = certify(name, **growth)
    assert not certificate.exact and certificate.max_diff > 1e-6
    found = broken(certificate)
    assert found, certificate
    assert rules is None or rules <= found, certificate
    text = str(certificate)
    assert "function changed" in text
    for rule in certificate.rules:
        assert f"rule {rule.name}: {'holds' if rule.holds else 'broken by'}" in text
        assert rule.holds or rule.why in text


@pytest.mark.parametrize(
    "name, growth, rules",
    [
        ("gpt2-lm", {"depth": 4, "method": "stack"}, {"new layers add zero"}),
        ("bert", {"width": 12, "method": "pad"}, {"post-norm stream"}),
        ("bert-mlm", {"depth": 4, "method": "zero"}, {"pre-norm depth"}),
        ("llama-lm", {"width": 32, "method": "net2net"}, {"norm statistics"}),
    ],
    ids=["stack", "post-norm-pad", "post-norm-depth", "net2net"],
)
def test_no_other_rule_is_blamed(name, growth, rules):
    assert broken(certify(name, **growth)) == rules


@pytest.mark.filterwarnings("ignore:method .*without data")
@pytest.mark.parametrize("depth", lf.methods.names()["depth"])
@pytest.mark.parametrize("width", lf.methods.names()["width"])
@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "llama-tied"])
def test_the_rules_hold_when_the_function_is_kept_and_only_then(name, width, depth):
    small = build(name, dtype=torch.float64)
    certificate = certify(name, small, width=2 * small.config.hidden_size, depth=3, method=(width, depth))
    kept = certificate.max_diff < 1e-9
    assert certificate.exact == kept == (not broken(certificate)), certificate


@pytest.mark.filterwarnings("ignore:method .*without data")
@pytest.mark.parametrize("method", lf.methods.names()["width"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"intermediate_size": 24},
        {"num_attention_heads": 8, "num_key_value_heads": 4},
        {"num_attention_heads": 8},
    ],
    ids=["ffn", "kv-heads", "group"],
)
def test_the_same_with_one_axis_alone(sizes, method):
    if method == "aki" and sizes == {"num_attention_heads": 8}:
        with pytest.raises(lf.GrowthError, match=r"self_attn.q_proj.*aki"):  # old queries are not in front
            certify("llama-lm", method=method, **sizes)
        return
    certificate = certify("llama-lm", method=method, **sizes)
    kept = certificate.max_diff < 1e-9
    assert certificate.exact == kept == (not broken(certificate)), certificate


HEADS = {
    "gpt2-lm": ("GPT2ForTokenClassification", "GPT2ForQuestionAnswering"),
    "bert": ("BertForQuestionAnswering", "BertForTokenClassification", "BertForPreTraining"),
    "roberta": (
        "RobertaForSequenceClassification", "RobertaForTokenClassification", "RobertaForQuestionAnswering",
    ),
    "llama": ("LlamaForTokenClassification",),
}  # fmt: skip


@pytest.mark.parametrize("name, cls", [(name, cls) for name, heads in HEADS.items() for cls in heads])
def test_a_model_with_another_head(name, cls):
    """All of its logits are compared."""
    torch.manual_seed(0)
    small = getattr(transformers, cls)(TINY[name].make_config()).double().eval()
    with torch.no_grad():
        for p in small.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    large = lf.grow(small, width=2 * small.config.hidden_size, method="tile")
    batch = {"input_ids": make_batch(name)["input_ids"]}
    with exact_rms_norm():
        assert lf.certify(small, large, batch).exact
        heads = ("classifier", "qa_outputs", "score", "cls.seq_relationship")
        for head in [n for n, _ in large.named_parameters() if n.startswith(heads) and n.endswith("bias")]:
            with torch.no_grad():
                large.get_parameter(head)[-1] += 0.1
            assert lf.certify(small, large, batch).max_diff > 1e-3, head


@pytest.mark.parametrize("method", ["tile", "pad+zero"])
def test_every_rule_is_listed(method):
    """A reader sees all that was checked, also when all hold."""
    certificate = certify("gpt2-lm", width=16, depth=3, method=method)
    names = {rule.name for rule in certificate.rules}
    axes = {"embed", "ffn", "v"}
    wanted = {f"V^T U = I on {a}" for a in axes} | {
        "attention",
        "nonlinearity",
        "norm statistics",
        "tied head",
    }
    assert wanted | {"norm eps", "new layers add zero"} <= names
    assert set(certificate.axes) == axes
    assert all(error < 1e-9 for error in certificate.axes.values())


@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "llama-lm", "vit-class"])
def test_differences_and_losses_are_those_of_the_models(name):
    small = build(name)
    large = lf.grow(small, width=2 * small.config.hidden_size, depth=3, method="copy")
    batch = make_batch(name)
    certificate = lf.certify(small, large, batch)
    with torch.no_grad():
        diff = (output(small, batch).double() - output(large, batch).double()).abs()
        losses = [float(loss_of(m, batch)) for m in (small, large)]
    assert certificate.max_diff == pytest.approx(float(diff.max()), rel=1e-6)
    assert certificate.mean_diff == pytest.approx(float(diff.mean()), rel=1e-6)
    assert [certificate.loss_small, certificate.loss_large] == pytest.approx(losses, rel=1e-6)
    assert f"{certificate.max_diff:.3g}" in str(certificate) and "loss: small" in str(certificate)


def test_without_labels_there_is_no_loss():
    certificate = certify("gpt2-lm", batch={"input_ids": torch.tensor([[3, 4, 5]])}, width=16, method="tile")
    assert certificate.loss_small is None and certificate.loss_large is None
    assert "loss" not in str(certificate)


@pytest.mark.parametrize("form", ["mapping", "tuple", "list", "tensor"])
def test_a_batch_is_a_mapping_a_sequence_or_a_tensor(form):
    ids = torch.tensor([[3, 4, 5]])
    batch = {"mapping": {"input_ids": ids}, "tuple": (ids,), "list": [ids], "tensor": ids}[form]
    assert certify("gpt2-lm", batch=batch, width=16, method="tile").exact


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta", "llama", "vit", "deit"])
def test_hidden_states_are_read_back_to_the_small_width(name):
    small = build(name, dtype=torch.float64)
    with exact_rms_norm():
        large = lf.grow(small, width=2 * small.config.hidden_size, method="tile")
        batch = make_batch(name, dtype=torch.float64)
        assert lf.certify(small, large, batch).exact
        with torch.no_grad():
            a, b = output(small, batch), output(large, batch)
    assert b.shape[-1] == 2 * a.shape[-1]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nothing_is_changed(training):
    small = build("gpt2-lm").train(training)
    large = lf.grow(small, width=16, method="tile")
    states = [snapshot(m) for m in (small, large)]
    lf.certify(small, large, make_batch("gpt2-lm"))
    assert all(same(s, m) for s, m in zip(states, (small, large), strict=True))
    assert small.training is large.training is training
    assert all(p.grad is None for m in (small, large) for p in m.parameters())


def test_every_module_gets_its_own_mode_back():
    small = build("gpt2-lm").train()
    small.transformer.wte.eval()
    large = lf.grow(small, depth=3, method="stack").train()
    large.transformer.h[1].eval()
    before = [m.training for model in (small, large) for m in model.modules()]
    lf.certify(small, large, make_batch("gpt2-lm"))
    assert [m.training for model in (small, large) for m in model.modules()] == before


def test_dropout_is_off():
    small = build("gpt2-lm", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(small.config, key, 0.5)
    small = TINY["gpt2-lm"].cls(small.config).train()
    large = lf.grow(small, width=16, method="tile")
    assert large.training and lf.certify(small, large, make_batch("gpt2-lm")).exact


UNITS = [
    ("tile-2x", {"width": 16, "method": "tile"}, {"embed": (16, 8), "ffn": (24, 12), "v": (16, 8)}),
    ("tile-3x", {"width": 24, "method": "tile"}, {"embed": (24, 8), "ffn": (36, 12), "v": (24, 8)}),
    ("net2net-ffn", {"n_inner": 17, "method": "net2net"}, {"ffn": (17, 12)}),
    ("pad-ffn", {"n_inner": 17, "method": "pad"}, {"ffn": (17, 17)}),
    (
        "noise",
        {"width": 16, "method": "tile", "noise": 0.1},
        {"embed": (16, 16), "ffn": (24, 24), "v": (16, 16)},
    ),
    ("ligo", {"width": 16}, {"embed": (16, 16), "ffn": (24, 24), "v": (16, 16)}),
]


@pytest.mark.filterwarnings("ignore:method .*without data")
@pytest.mark.parametrize("growth, units", [u[1:] for u in UNITS], ids=[u[0] for u in UNITS])
def test_duplicated_units_are_counted(growth, units):
    """Copies that read and write alike get equal gradients: noise or a learned map parts them."""
    assert certify("gpt2-lm", **growth).units == units


def test_copies_stay_copies_without_noise():
    """What the count promises: a step of training keeps tiled units alike, and noisy ones apart."""
    for noise, alike in ((0.0, True), (0.1, False)):
        large = lf.grow(build("gpt2-lm", dtype=torch.float64), n_inner=24, method="tile", noise=noise)
        loss_of(large, make_batch("gpt2-lm")).backward()
        grad = large.transformer.h[0].mlp.c_fc.weight.grad
        assert torch.allclose(grad[:, :12], grad[:, 12:], rtol=1e-9, atol=1e-15) is alike


def test_float32_maps_are_not_blamed_for_rounding():
    certificate = certify("gpt2-lm", dtype=torch.float32, width=24, depth=3, method="tile+zero")
    assert certificate.exact and not broken(certificate), certificate


HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
NAMES = pytest.mark.parametrize("name", ["gpt2-lm", "llama-lm", "vit-class"])


@HALF
@NAMES
@pytest.mark.parametrize(
    "factor, method", [(2, "tile+zero"), (3, "tile+zero"), (1.5, "pad+zero"), (2.5, "pad+identity")]
)
def test_exact_growth_in_half_precision_is_kept(name, factor, method, dtype):
    small = build(name, dtype=dtype)
    width = int(factor * small.config.hidden_size)
    batch = make_batch(name, dtype=dtype)
    certificate = certify(name, small, batch, width=width, depth=3, method=method)
    assert certificate.exact and "function kept" in str(certificate), certificate
    with torch.no_grad():
        assert certificate.tolerance < 0.2 * float(output(small, batch).abs().max())


@HALF
@NAMES
@pytest.mark.filterwarnings("ignore:method .*without data")
@pytest.mark.parametrize("method", ["random+stack", "net2net+stack", "ligo", "stack"])
def test_another_function_in_half_precision_is_not_kept(name, method, dtype):
    small = build(name, dtype=dtype)
    wider = {} if method == "stack" else {"width": 2 * small.config.hidden_size}
    certificate = certify(name, small, make_batch(name, dtype=dtype), depth=4, method=method, **wider)
    assert certificate.max_diff > certificate.tolerance and not certificate.exact, certificate


@HALF
def test_a_small_change_shows_in_half_precision(dtype):
    """Without a rule to help: one gain, a tenth larger."""
    small = build("gpt2-lm", dtype=dtype)
    other = build("gpt2-lm", dtype=dtype)
    with torch.no_grad():
        other.transformer.ln_f.weight.mul_(1.1)
    certificate = lf.certify(small, other, make_batch("gpt2-lm"))
    assert certificate.rules == [] and not certificate.exact
    assert lf.certify(small, small, make_batch("gpt2-lm")).max_diff == 0


def test_weights_that_were_rounded_before():
    """A half-precision model that was loaded in float32: its dtype says nothing of the rounding."""
    small = build("llama-lm", dtype=torch.bfloat16)
    large = lf.grow(small, width=24, depth=3, method="pad+zero")
    pair, batch = [small.float(), large.float()], make_batch("llama-lm")
    assert not lf.certify(*pair, batch).exact
    certificate = lf.certify(*pair, batch, stored=torch.bfloat16)
    assert certificate.exact, certificate
    assert lf.certify(*pair, batch, stored=torch.float32) == lf.certify(*pair, batch)


def test_half_precision_with_a_kernel_that_knows_no_other():
    small = build("gpt2-lm", dtype=torch.bfloat16)
    large = lf.grow(small, width=16, method="tile")
    for model in (small, large):
        model.config._attn_implementation_internal = "flash_attention_2"
    assert lf.certify(small, large, make_batch("gpt2-lm")).exact
    assert small.config._attn_implementation == large.config._attn_implementation == "flash_attention_2"


def test_a_norm_that_computes_in_float32_is_not_blamed_for_it():
    """Hugging Face's RMSNorm, in a float64 model, and not replaced by an exact one as elsewhere here."""
    small = build("llama-lm", dtype=torch.float64)
    large = lf.grow(small, width=24, depth=3, method="pad+zero")
    certificate = lf.certify(small, large, make_batch("llama-lm"))
    assert certificate.max_diff > 1e-10  # float32's rounding
    assert certificate.exact, certificate


def test_a_broken_rule_is_enough():
    """New layers that add something, on a batch that does not show it."""
    small = build("gpt2-lm", dtype=torch.float64)
    large = lf.grow(small, depth=4, method="stack")
    with torch.no_grad():
        for name, p in large.named_parameters():
            if ".h.2." in name or ".h.3." in name:
                p.zero_()
    certificate = lf.certify(small, large, make_batch("gpt2-lm"))
    assert certificate.max_diff == 0 and not certificate.exact
    assert "function not kept, by a rule" in str(certificate)


def test_an_unscaled_eps_is_the_rule_that_broke():
    small = build("llama-lm", dtype=torch.float64)
    sizes = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 18}
    certificate = certify("llama-lm", small, target=TINY["llama-lm"].make_config(**sizes), method="pad")
    assert broken(certificate) == {"norm eps"}
    assert "is 0.02" in str(certificate) and "0.0133" in str(certificate)


def test_two_models_of_unknown_growth_are_still_compared():
    small, other = build("gpt2-lm"), build("gpt2-lm", seed=1)
    certificate = lf.certify(small, other, make_batch("gpt2-lm"))
    assert not certificate.exact and certificate.rules == [] and certificate.axes == {}
    assert lf.certify(small, small, make_batch("gpt2-lm")).max_diff == 0


def test_hidden_states_of_unknown_growth_are_refused():
    with pytest.raises(lf.GrowthError, match=r"7, 8.*7, 16"):
        lf.certify(build("gpt2"), build("gpt2", n_embd=16, n_head=4), make_batch("gpt2"))


def test_a_model_without_a_tensor_output_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return {"nothing": None}

    with pytest.raises(lf.GrowthError, match="Odd returned a dict"):
        lf.certify(Odd(), Odd(), torch.ones(1))


def test_compiled_models_are_certified():
    small = build("gpt2-lm")
    large = lf.grow(small, width=16, method="tile")
    certificate = lf.certify(torch.compile(small, backend="eager"), torch.compile(large, backend="eager"),
                             make_batch("gpt2-lm"))  # fmt: skip
    assert certificate.exact and certificate.rules


def test_a_learned_growth_is_reported_with_its_learned_maps():
    """The certificate is of the weights as they are now: tied LiGO breaks V^T U = I by C^T C."""
    small, batch = build("gpt2-lm"), make_batch("gpt2-lm")
    large = lf.grow(small, width=16, depth=3, method="copy")
    op = lf.GrowthOperator(small, large, tie=True)
    lf.learn(op, [batch], steps=3)
    certificate = lf.certify(small, large, batch)
    assert certificate.method == "ligo" and set(certificate.axes) == {"embed", "ffn", "v"}
    u = op.width_maps()["embed"].double().detach()
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(8, 8, dtype=torch.float64, generator=generator)
    assert certificate.axes["embed"] > 0.1 * float((u.T @ u @ x - x).abs().max())


def unexplained(certificate):
    """That all rules hold, the function has changed and the certificate says so; how it puts it."""
    assert not certificate.exact and certificate.rules and not broken(certificate)
    assert certificate.unexplained in str(certificate).splitlines()
    return certificate.unexplained


def test_a_change_that_no_rule_explains_is_said_to_be_one():
    small, batch = build("llama-lm"), make_batch("llama-lm")
    large = lf.grow(small, width=32, depth=3, method="tile+zero")
    assert lf.certify(small, large, batch).unexplained == ""
    large.model.rotary_emb.inv_freq.mul_(3)
    assert "buffer model.rotary_emb.inv_freq is not the small" in unexplained(lf.certify(small, large, batch))
    large.model.rotary_emb.inv_freq.div_(3)
    with torch.no_grad():
        large.lm_head.weight.add_(1)
    assert "weights written since" in unexplained(lf.certify(small, large, batch))
    other = lf.grow(small, width=32, method="tile", hidden_act="relu")
    assert "the config" in unexplained(lf.certify(small, other, batch))


def test_a_change_that_a_rule_explains_is_left_to_it():
    certificate = certify("gpt2-lm", width=16, method="copy")
    assert broken(certificate) and certificate.unexplained == ""


def test_rules_of_another_pair_are_not_shown():
    """A model grown from a grown one, or from another of the same sizes."""
    small, batch = build("gpt2-lm"), make_batch("gpt2-lm")
    middle = lf.grow(small, width=16, method="tile")
    large = lf.grow(middle, width=32, depth=3, method="tile+zero")
    assert lf.certify(middle, large, batch).rules
    chain = lf.certify(small, large, batch)
    assert chain.max_diff < 1e-5 and (chain.rules, chain.axes, chain.units) == ([], {}, {})
    stranger = lf.certify(build("gpt2-lm", seed=1), middle, batch)
    assert not stranger.exact and stranger.rules == []
    assert "not known here how the large model was grown" in str(stranger)


def test_the_rules_are_those_of_a_copy_of_the_small_model_too():
    small, batch = build("gpt2-lm"), make_batch("gpt2-lm")
    large = lf.grow(small, width=16, method="tile")
    again = build("gpt2-lm")
    assert lf.certify(again, large, batch).rules
    del small  # nobody can compare weights any more
    gc.collect()
    assert lf.certify(again, large, batch).rules
    assert not lf.certify(build("gpt2-lm", n_layer=1), large, batch).rules


def test_the_record_does_not_keep_models_alive():
    small = build("gpt2-lm")
    large = lf.grow(small, width=16, method="tile")
    refs = [weakref.ref(small), weakref.ref(large)]
    del small, large
    gc.collect()
    assert [r() for r in refs] == [None, None]


def test_every_family_gets_its_certificate():
    """All rules are there and hold for an exact width growth."""
    for name in TINY:
        if family(name) in ("mistral", "deit"):
            continue  # as llama and vit
        small = build(name, dtype=torch.float64)
        certificate = certify(name, small, width=2 * small.config.hidden_size, method="tile")
        assert certificate.exact and certificate.axes, name


def test_a_table_that_does_not_say_where_the_epsilon_is(monkeypatch):
    table = replace(architectures._REGISTRY["gpt2"], eps=None)
    monkeypatch.setitem(architectures._REGISTRY, "gpt2", table)
    certificate = certify("gpt2-lm", width=12, method="pad")
    assert "epsilon must be 0.666667 times" in unexplained(certificate)
