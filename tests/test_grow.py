"""`grow`: sizes, targets, options, seeds, controls, and what the grown model keeps."""

import inspect
import warnings
from functools import partial

import pytest
import torch
from models import IMAGE, POST_NORM, TINY, build, family, make_batch, output, same, snapshot, train

import ligo_fast as lf
from ligo_fast.models.target import build as build_target

NAMES = list(TINY)


def config_sizes(model):
    c = model.config
    ffn = c.n_inner if family(c.model_type) == "gpt2" else c.intermediate_size
    return (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, ffn)


@pytest.mark.parametrize("name", NAMES)
def test_width_and_depth_in_one_call(name):
    """Heads grow at a fixed head_dim and ffn in proportion."""
    small = build(name)
    before = snapshot(small)
    width, _, heads, ffn = config_sizes(small)
    large = lf.grow(small, width=2 * width, depth=3, method="stack")
    assert type(large) is type(small)
    assert config_sizes(large) == (2 * width, 3, 2 * heads, 2 * ffn)
    assert same(before, small) and config_sizes(small) == (width, 2, heads, ffn)
    assert torch.isfinite(output(large, make_batch(name))).all()


@pytest.mark.parametrize("name", ["llama-lm", "qwen3-lm"])
def test_key_value_heads_grow_in_proportion(name):
    small = build(name)
    large = lf.grow(small, width=3 * small.config.hidden_size, method="copy")
    assert (large.config.num_attention_heads, large.config.num_key_value_heads) == (12, 6)
    assert large.config.head_dim == small.config.head_dim == 4


def test_keywords_in_the_configs_own_names_say_otherwise():
    gpt2 = lf.grow(build("gpt2-lm"), width=16, n_head=2, n_inner=13, method="copy")
    assert config_sizes(gpt2) == (16, 2, 2, 13)
    llama = lf.grow(build("llama-lm"), width=32, num_attention_heads=8, num_key_value_heads=2, method="copy")
    assert (llama.config.num_attention_heads, llama.config.num_key_value_heads) == (8, 2)
    vit = lf.grow(build("vit-class"), intermediate_size=30, num_hidden_layers=4, method="copy")
    assert config_sizes(vit) == (8, 4, 2, 30)


def test_names_that_a_config_maps_to_its_own_count_as_its_own():
    """GPT2Config takes num_hidden_layers for n_layer, and so on."""
    small = build("gpt2-lm")

    def sizes(**values):
        large = lf.grow(small, method="copy", **values)
        c = large.config
        return c.n_embd, c.n_layer, c.n_head, len(large.transformer.h), large.transformer.h[0].attn.num_heads

    assert sizes(num_hidden_layers=4) == sizes(n_layer=4) == (8, 4, 2, 4, 2)
    assert sizes(n_embd=32, num_attention_heads=4) == sizes(n_embd=32, n_head=4) == (32, 2, 4, 2, 4)
    assert sizes(hidden_size=16) == sizes(n_embd=16) == (16, 2, 2, 2, 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"depth": 4, "num_hidden_layers": 3}, r"axis layer: depth=4 and n_layer=3"),
        ({"depth": 4, "n_layer": 3}, r"axis layer: depth=4 and n_layer=3"),
        ({"width": 16, "hidden_size": 24}, r"axis embed: width=16 and n_embd=24"),
        ({"width": 16, "n_head": 4, "num_attention_heads": 8}, r"n_head=4 was given, and 8 under another"),
    ],
)
def test_a_size_that_is_given_twice_is_named(values, said):
    with pytest.raises(lf.GrowthError, match=said):
        lf.grow(build("gpt2-lm"), method="copy", **values)


def test_a_config_without_n_inner_follows_the_width():
    large = lf.grow(build("gpt2-lm", n_inner=None), width=16, method="tile")
    assert large.transformer.h[0].mlp.c_fc.weight.shape == (16, 64)


def target(name, kind):
    sizes = {"hidden_size": 2 * TINY[name].sizes.get("hidden_size", 8), "num_attention_heads": 4}
    if "num_key_value_heads" in TINY[name].sizes:
        sizes |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = TINY[name].make_config(**sizes, num_hidden_layers=3)
    if kind == "config":
        return config
    with torch.device("meta" if kind == "meta" else "cpu"):
        return TINY[name].cls(config).eval()


@pytest.mark.parametrize("method", ["tile+stack", "ligo"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:method 'ligo' without data")
def test_a_config_a_module_and_a_meta_module_grow_alike(name, method):
    small = build(name)
    results = {k: lf.grow(small, target=target(name, k), method=method) for k in ("config", "module", "meta")}
    expected = snapshot(results["config"])
    for kind, large in results.items():
        assert same(expected, large), kind
        assert not any(t.is_meta for t in [*large.parameters(), *large.buffers()])
    batch = make_batch(name)
    want = output(results["config"], batch)
    assert all(torch.equal(want, output(large, batch)) for large in results.values())


@pytest.mark.parametrize("kind", ["module", "meta"])
def test_a_module_given_is_the_module_returned(kind):
    given = target("gpt2-lm", kind)
    assert lf.grow(build("gpt2-lm"), target=given, method="copy") is given


@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "llama-tied"])
def test_a_tied_meta_target_stays_tied_and_trains(name):
    large = lf.grow(build(name), target=target(name, "meta"), method="copy")
    assert large.get_output_embeddings().weight is large.get_input_embeddings().weight
    large(**make_batch(name)).loss.backward()
    assert all(p.grad is not None for p in large.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["config", "module", "meta"])
def test_buffers_come_from_the_targets_config(kind):
    """Rotary frequencies of another base, not the small model's."""
    small = build("llama-lm")
    rope = {"rope_type": "default", "rope_theta": 500.0}
    config = TINY["llama-lm"].make_config(num_hidden_layers=3, rope_parameters=rope)
    given = config
    if kind != "config":
        with torch.device("meta" if kind == "meta" else "cpu"):
            given = TINY["llama-lm"].cls(config)
    large = lf.grow(small, target=given, method="stack")
    reference = TINY["llama-lm"].cls(config)
    assert torch.equal(large.model.rotary_emb.inv_freq, reference.model.rotary_emb.inv_freq)
    assert not torch.equal(large.model.rotary_emb.inv_freq, small.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("name", ["bert-mlm", "roberta-mlm"])
def test_position_ids_of_a_meta_target(name):
    large = lf.grow(build(name), target=target(name, "meta"), method="copy")
    fresh = dict(target(name, "module").named_buffers())
    assert fresh and all(torch.equal(fresh[n], b) for n, b in large.named_buffers())


def test_dtype_device_and_mode_follow_the_small_model():
    for dtype in (torch.float64, torch.bfloat16):
        small = build("gpt2-lm", dtype=dtype).train()
        large = lf.grow(small, width=16, method="tile")
        assert {p.dtype for p in large.parameters()} == {dtype} and large.training
    assert not lf.grow(build("gpt2-lm"), width=16, method="tile").training


def test_attention_implementation_is_kept():
    small = build("gpt2-lm", attn_implementation="eager")
    assert lf.grow(small, width=16, method="tile").config._attn_implementation == "eager"


def test_the_large_model_does_not_say_that_it_lies_where_the_small_one_does(tmp_path):
    """PEFT and model cards write it down as the base model."""
    build("gpt2-lm").save_pretrained(tmp_path)
    small = TINY["gpt2-lm"].cls.from_pretrained(tmp_path)
    large = lf.grow(small, width=16)
    assert small.name_or_path == str(tmp_path) and not large.name_or_path


def test_the_generation_config_is_kept():
    small = build("gpt2-lm")
    small.generation_config.max_new_tokens = 7
    large = lf.grow(small, width=16)
    large.generation_config.top_k = 3
    assert large.generation_config.max_new_tokens == 7 and small.generation_config.top_k != 3


@pytest.mark.parametrize("method, data", [("random+stack", None), ("tile", None), ("ligo", 1)])
def test_what_is_frozen_stays_frozen(method, data):
    """In the large model, too: parameters outside the layers, and those that are frozen in every layer."""
    small = build("gpt2-lm")
    small.transformer.wte.requires_grad_(False)
    small.transformer.h[0].ln_1.weight.requires_grad_(False)
    for block in small.transformer.h:
        block.mlp.c_fc.weight.requires_grad_(False)
    data = data and [make_batch("gpt2-lm")]
    large = lf.grow(small, width=16, depth=3, method=method, data=data, steps=2)
    frozen = {n for n, p in large.named_parameters() if not p.requires_grad}
    assert frozen == {"transformer.wte.weight", *(f"transformer.h.{n}.mlp.c_fc.weight" for n in range(3))}
    given = build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24)
    assert all(p.requires_grad for p in lf.grow(small, target=given, method=method, data=data).parameters())


def test_options_of_the_inner_optimizer():
    seen = []

    class Recorded(torch.optim.SGD):
        def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0):
            super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
            seen.append((lr, momentum, weight_decay))

    small, data = build("gpt2-lm"), [make_batch("gpt2-lm")]
    lf.grow(small, width=16, data=data, steps=1, lr=0.1, optimizer=Recorded, momentum=0.5, weight_decay=0.2)
    assert seen == [(0.1, 0.5, 0.2)]
    lf.grow(small, width=16, data=data, steps=1, betas=(0.9, 0.95), weight_decay=0.1)
    with pytest.raises(lf.GrowthError, match="weight_decay: options of learning"):
        lf.grow(small, width=16, weight_decay=0.1)
    with pytest.raises(lf.GrowthError, match="momentum"):
        lf.grow(small, width=16, data=data, momentum=0.9)  # AdamW has none


@pytest.mark.parametrize(
    "wrap", [partial(torch.compile, backend="eager"), torch.nn.DataParallel], ids=["compile", "DataParallel"]
)
def test_a_wrapped_small_model_is_unwrapped(wrap):
    small = build("gpt2-lm")
    large = lf.grow(wrap(small), width=16, method="tile")
    assert type(large) is type(small)
    assert same(snapshot(lf.grow(small, width=16, method="tile")), large)


def test_listed_layers_say_the_depth():
    small = build("gpt2-lm")
    large = lf.grow(small, width=16, method="tile+0,1,1,0")
    assert large.config.n_layer == 4
    assert same(snapshot(lf.grow(small, width=16, depth=4, method="tile+0,1,1,0")), large)
    assert lf.grow(small, method="0,1,1,0", n_layer=4).config.n_layer == 4
    for sizes in ({"depth": 5}, {"n_layer": 5}):
        with pytest.raises(lf.GrowthError, match="axis layer: 4 layers chosen, the target has 5"):
            lf.grow(small, method="0,1,1,0", **sizes)


def grow_all(method, seed, **options):
    return snapshot(lf.grow(build("gpt2-lm"), width=16, depth=4, method=method, seed=seed, **options))


@pytest.mark.filterwarnings("ignore:method 'ligo' without data")
@pytest.mark.parametrize("method", ["ligo", "net2net", "aki", "pad", "random", "scratch", "tile+identity"])
def test_a_seed_repeats_bit_for_bit(method):
    first = grow_all(method, 3)
    torch.manual_seed(123)  # no other source of randomness is used
    again, other = grow_all(method, 3), grow_all(method, 4)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


def test_noise_repeats_with_its_seed():
    first, again, other = (grow_all("tile", seed, noise=0.1) for seed in (3, 3, 4))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("method", ["random", "scratch", "tile+identity"])
def test_a_meta_target_repeats_with_its_seed(method):
    """What the target keeps of its own initial weights is made here, so it follows the seed, too."""
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(states))
        large = lf.grow(build("gpt2-lm"), target=target("gpt2-lm", "meta"), method=method, seed=seed)
        states.append(snapshot(large))
    assert all(torch.equal(states[0][n], t) for n, t in states[1].items())
    assert not all(torch.equal(states[0][n], t) for n, t in states[2].items())


@pytest.mark.filterwarnings("ignore:method 'ligo' without data")
@pytest.mark.parametrize("kind", ["config", "meta"])
@pytest.mark.parametrize("method", ["ligo", "random", "net2net"])
def test_the_global_random_state_is_left_alone(method, kind):
    small, given = build("gpt2-lm"), target("gpt2-lm", kind)
    before = torch.get_rng_state()
    lf.grow(small, target=given, method=method)
    assert torch.equal(before, torch.get_rng_state())


def test_ligo_without_data_warns_and_applies_the_initial_operator():
    small = build("gpt2-lm")
    with pytest.warns(UserWarning, match="nothing is learned|nothing was learned") as caught:
        large = lf.grow(small, width=16, depth=3, method="ligo", seed=2)
    assert caught[0].filename == __file__
    reference = lf.grow(small, width=16, depth=3, method="copy")
    lf.GrowthOperator(small, reference, seed=2).apply_()
    assert same(snapshot(reference), large)


def test_without_method_or_data_new_units_start_afresh():
    small = build("gpt2-lm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large = lf.grow(small, width=16, depth=3, seed=2)
    assert same(snapshot(lf.grow(small, width=16, depth=3, method="random+stack", seed=2)), large)


@pytest.mark.parametrize("method", ["tile", "stack", "scratch"])
def test_other_methods_do_not_warn(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lf.grow(build("gpt2-lm"), width=16, method=method)


def test_ligo_learns_on_data():
    small, batch, seen = build("gpt2-lm"), make_batch("gpt2-lm"), []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        large = lf.grow(
            small, width=16, depth=3, data=[batch], steps=12, lr=2e-2, tie=False, depth_init="interpolate",
            progress=lambda step, loss: seen.append(loss),
        )  # fmt: skip
    assert len(seen) == 12 and seen[-1] < seen[0]
    assert lf.certify(small, large, batch).loss_large < seen[0]


def test_learning_repeats_bit_for_bit():
    runs = [
        snapshot(lf.grow(build("gpt2-lm"), width=16, data=[make_batch("gpt2-lm")], steps=3, seed=5))
        for _ in range(2)
    ]
    assert all(torch.equal(t, runs[1][n]) for n, t in runs[0].items())


@pytest.mark.parametrize(
    "method", ["pad+zero", ("pad", "zero"), ["pad", "zero"]], ids=["name", "tuple", "list"]
)
def test_a_method_is_a_name_or_a_pair(method):
    expected = snapshot(lf.grow(build("gpt2-lm"), width=12, depth=3, method="pad+zero"))
    assert same(expected, lf.grow(build("gpt2-lm"), width=12, depth=3, method=method))


@pytest.mark.filterwarnings("ignore:method .*without data")
@pytest.mark.parametrize("depth", lf.methods.names()["depth"])
@pytest.mark.parametrize("width", lf.methods.names()["width"])
def test_every_pair_of_methods_runs(width, depth):
    small = build("llama-lm")
    large = lf.grow(small, width=32, depth=4, method=(width, depth))
    batch = make_batch("llama-lm")
    assert torch.isfinite(output(large, batch)).all()
    assert "function" in str(lf.certify(small, large, batch))


@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "llama-lm", "llama-tied", "qwen3-lm", "vit-class"])
def test_saved_and_loaded_it_is_bitwise_the_same(name, tmp_path):
    small = build(name)
    method = "tile" if family(name) in POST_NORM else "pad"
    factor = 2 if method == "tile" else 1.5
    large = lf.grow(small, width=int(factor * small.config.hidden_size), method=method)
    large.save_pretrained(tmp_path)
    loaded = type(large).from_pretrained(tmp_path).eval()
    batch = make_batch(name)
    assert loaded.config.to_dict().keys() == large.config.to_dict().keys()
    assert torch.equal(output(large, batch), output(loaded, batch))


def test_scratch_takes_nothing_and_random_keeps_the_old_block():
    small = build("gpt2-lm")
    fresh = target("gpt2-lm", "module")
    before = snapshot(fresh)
    assert same(before, lf.grow(small, target=fresh, method="scratch"))
    mixed = lf.grow(small, target=fresh, method="random")
    old, new = small.transformer, mixed.transformer
    assert torch.equal(new.wte.weight[:, :8], old.wte.weight)
    assert torch.equal(new.wte.weight[:, 8:], before["transformer.wte.weight"][:, 8:])
    fc, fc_before = new.h[1].mlp.c_fc.weight, before["transformer.h.1.mlp.c_fc.weight"]
    assert torch.equal(fc[:8, :12], old.h[1].mlp.c_fc.weight)
    assert torch.equal(fc[8:], fc_before[8:]) and torch.equal(fc[:8, 12:], fc_before[:8, 12:])
    qkv, qkv_before = new.h[0].attn.c_attn.weight, before["transformer.h.0.attn.c_attn.weight"]
    for block in range(3):
        part = qkv[:8, 16 * block : 16 * block + 8]
        assert torch.equal(part, old.h[0].attn.c_attn.weight[:, 8 * block : 8 * block + 8])
        assert torch.equal(
            qkv[:, 16 * block + 8 : 16 * block + 16], qkv_before[:, 16 * block + 8 : 16 * block + 16]
        )
    for name, p in mixed.transformer.h[2].named_parameters():
        assert torch.equal(p, before[f"transformer.h.2.{name}"]), name


def test_stacked_layers_are_the_small_ones_in_turn():
    small = build("gpt2-lm")
    large = lf.grow(small, depth=5, method="stack")
    for i, layer in enumerate(large.transformer.h):
        assert same(snapshot(small.transformer.h[i % 2]), layer)
    interleaved = lf.grow(small, depth=4, method="interpolate")
    for i, layer in enumerate(interleaved.transformer.h):
        assert same(snapshot(small.transformer.h[i // 2]), layer)


def test_no_growth_is_a_copy():
    small = build("bert-mlm")
    large = lf.grow(small, width=8, depth=2, method="tile")
    assert large is not small and same(snapshot(small), large)


def test_the_target_need_not_be_a_fresh_one():
    """Whatever it held, the result is the same."""
    first = lf.grow(build("gpt2-lm"), target=target("gpt2-lm", "module"), method="pad+zero")
    expected = snapshot(first)
    with torch.no_grad():
        for p in first.parameters():
            p.fill_(7.0)
    assert same(expected, lf.grow(build("gpt2-lm"), target=first, method="pad+zero"))


def test_the_signature_of_the_front_page():
    parameters = inspect.signature(lf.grow).parameters
    assert {"small", "target", "width", "depth", "method", "data", "steps", "seed"} <= set(parameters)
    assert parameters["method"].default is None and parameters["steps"].default == 100


@pytest.fixture
def nan_for_empty():
    """Memory without content is full of NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("method", ["aki+zero", "ligo"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:method 'ligo' without data")
def test_a_target_without_content_is_written_whole(name, method, nan_for_empty):
    small = build(name)
    config = target(name, "config")
    table = lf.architectures.architecture_of(small)
    filled, empty = (build_target(table, small, config, 3, random) for random in (True, False))
    assert all(p.isfinite().all() for p in filled.parameters())
    # a ViT's constructor draws numbers before they are a parameter
    assert family(name) in IMAGE or any(p.isnan().any() for p in empty.parameters())
    grown = lf.grow(small, target=config, method=method, seed=3)
    equal = same(snapshot(lf.grow(small, target=filled, method=method, seed=3)), grown)
    assert equal


@pytest.mark.parametrize(
    "method", ["random", "random+zero", "copy+random", "copy+identity", "scratch", "copy+scratch"]
)
@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "llama-tied", "vit-class"])
def test_values_that_stay_are_the_constructors(name, method, nan_for_empty):
    small = build(name)
    config = target(name, "config")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        filled = TINY[name].cls(config).eval()
    grown = lf.grow(small, target=config, method=method, seed=3)
    equal = same(snapshot(lf.grow(small, target=filled, method=method, seed=3)), grown)
    assert equal


def test_a_buffer_of_random_numbers_is_the_constructors(monkeypatch, nan_for_empty):
    """Its bits depend on how many numbers were drawn before."""
    init = TINY["gpt2-lm"].cls.__init__

    def with_buffer(self, config):
        init(self, config)
        self.register_buffer("directions", torch.randn(4), persistent=False)

    monkeypatch.setattr(TINY["gpt2-lm"].cls, "__init__", with_buffer)
    small = build("gpt2-lm")
    large = lf.grow(small, width=16, depth=3, method="copy", seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        want = type(small)(large.config)
    assert torch.equal(large.directions, want.directions)


def test_a_target_without_content_is_written_before_it_learns(nan_for_empty):
    small, seen = build("gpt2-lm"), []

    def loss(model, batch):
        seen.append(model(**batch).loss)
        return seen[-1]

    lf.grow(small, width=16, depth=3, data=[make_batch("gpt2-lm")], steps=2, loss=loss)
    assert len(seen) == 3 and all(value.isfinite() for value in seen)


@pytest.mark.parametrize("data", [None, [make_batch("gpt2-lm")]], ids=["initial", "learned"])
@pytest.mark.filterwarnings("ignore:method 'ligo' without data")
def test_the_operator_is_returned_when_asked_for(data, tmp_path):
    small = build("gpt2-lm")
    sizes = {"width": 16, "depth": 3, "data": data, "steps": 3}
    large, op = lf.grow(small, **sizes, return_operator=True)
    assert isinstance(op, lf.GrowthOperator) and op.large is large and op.small is small
    assert same(snapshot(lf.grow(small, **sizes)), large)
    before = snapshot(large)
    assert same(before, op.apply_())
    opts = [torch.optim.AdamW(m.parameters()) for m in (small, large)]
    train(small, opts[0], 1)
    lf.grow_optimizer(op, *opts)
    assert opts[1].state
