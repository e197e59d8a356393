"""Tables of model families: one written for a model of one's own, what is refused, and no dead rows."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import transformers as hf
from models import BERT, GPT2, LLAMA, QWEN3, ROBERTA, VIT, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

import ligo_fast as lf
from ligo_fast import Architecture, GrowthError, Size, architectures, register_architecture
from ligo_fast.architectures import architecture_of


@dataclass(frozen=True)
class Config:
    vocab: int = 11
    context: int = 9
    width: int = 12
    layers: int = 2
    heads: int = 3
    hidden: int = 20


class Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads = c.heads
        self.norm1, self.norm2 = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.qkv, self.proj = nn.Linear(c.width, 3 * c.width, bias=False), nn.Linear(c.width, c.width)
        self.up, self.down = nn.Linear(c.width, c.hidden), nn.Linear(c.hidden, c.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A decoder as anyone would write it: its own config, fused q|k|v, a head tied to the embedding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


MY_GPT = Architecture(
    "my-gpt",
    match=lambda model: isinstance(model, GPT),
    sizes={
        "embed": Size("width"),
        "layer": Size("layers"),
        "head": Size("heads"),
        "head_dim": Size(default=lambda c: c.width // c.heads),
        "ffn": Size("hidden"),
    },
    axes={"q": "head.q*head_dim.score", "k": "head.k*head_dim.score", "v": "head.v*head_dim"},
    parameters={
        "tokens.weight": "vocab, embed",
        "positions.weight": "position, embed",
        "blocks.*.norm1.weight": "embed:gain",
        "blocks.*.norm1.bias": "embed:shift",
        "blocks.*.qkv.weight": "q|k|v, embed:in",
        "blocks.*.proj.weight": "embed, v:in",
        "blocks.*.proj.bias": "embed",
        "blocks.*.norm2.weight": "embed:gain",
        "blocks.*.norm2.bias": "embed:shift",
        "blocks.*.up.weight": "ffn, embed:in",
        "blocks.*.up.bias": "ffn",
        "blocks.*.down.weight": "embed, ffn:in",
        "blocks.*.down.bias": "embed",
        "norm.weight": "embed:gain+",
        "norm.bias": "embed:shift+",
    },
)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of the registry, so that what a test registers is gone after it."""
    monkeypatch.setattr(architectures, "_REGISTRY", dict(architectures._REGISTRY))
    register_architecture(MY_GPT)
    yield


def gpt(**sizes: int) -> GPT:
    """A GPT with random weights, norms and biases too."""
    model = GPT(Config(**sizes)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


IDS = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "growth",
    [
        {"width": 24, "depth": 5, "method": "tile+zero"},
        {"width": 36, "method": "tile"},
        {"hidden": 31, "method": "net2net"},
        {"depth": 4, "method": "identity"},
        {"target": Config(width=24, heads=3, hidden=40), "method": "tile"},
    ],
    ids=["tile and zero", "three times", "hidden units only", "identity", "longer heads"],
)
def test_a_model_of_ones_own_grows_exactly(growth: dict[str, object]) -> None:
    small = gpt()
    large = lf.grow(small, **growth)
    assert large.head.weight is large.tokens.weight
    torch.testing.assert_close(large(IDS), small(IDS))
    assert large.config.vocab == small.config.vocab
    if "width" in growth:
        assert large.config.width == growth["width"]
        assert large.config.width // large.config.heads == 4


def test_the_sources_config_stays_as_it_is() -> None:
    small = gpt()
    lf.grow(small, width=24, depth=4, method="tile")
    assert small.config == Config()


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_a_model_of_ones_own_learns_by_ligo() -> None:
    small, losses = gpt(), []
    before = snapshot(small)
    large = lf.grow(
        small, width=24, depth=3, method="ligo", data=[IDS], steps=20, lr=1e-2, loss=next_token_loss,
        progress=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert large.config == Config(width=24, layers=3, heads=6, hidden=40)
    assert float(next_token_loss(large, IDS).detach()) < 0.9 * losses[0]
    assert all(torch.equal(t, before[n]) for n, t in snapshot(small).items())


def test_ligo_is_the_papers_table_of_ties_on_it() -> None:
    small = gpt()
    op = lf.GrowthOperator(small, gpt(width=24, heads=6, hidden=40, layers=3), tie=True)
    got = snapshot(op.apply_())
    u, d = op.width_maps(), op.depth_maps()
    for part, (axis, rows) in enumerate((("q", u["q"]), ("k", u["k"]), ("v", u["v"]))):
        stack = torch.stack([b.qkv.weight.chunk(3)[part] for b in small.blocks])
        want = lf.reference.grow(stack, d[f"blocks.*.qkv.weight[{axis}]"], rows, u["embed"])
        for layer in range(3):
            torch.testing.assert_close(got[f"blocks.{layer}.qkv.weight"].chunk(3)[part], want[layer])
    for name, out, into in (("proj", "embed", "v"), ("up", "ffn", "embed"), ("down", "embed", "ffn")):
        stack = torch.stack([getattr(b, name).weight for b in small.blocks])
        want = lf.reference.grow(stack, d[f"blocks.*.{name}.weight"], u[out], u[into])
        bias = torch.stack([getattr(b, name).bias for b in small.blocks])
        right = d[f"blocks.*.{name}.bias"] @ bias @ u[out].t()
        for layer in range(3):
            torch.testing.assert_close(got[f"blocks.{layer}.{name}.weight"], want[layer])
            torch.testing.assert_close(got[f"blocks.{layer}.{name}.bias"], right[layer])
    torch.testing.assert_close(got["tokens.weight"], small.tokens.weight @ u["embed"].t())


def changed(**changes: object) -> Architecture:
    return replace(MY_GPT, name="changed", **changes)


def test_an_operator_unpickled_without_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pickle.dumps(lf.GrowthOperator(gpt(), gpt(width=24, heads=6), "tile"))
    assert pickle.loads(packed).growth.architecture is MY_GPT
    monkeypatch.delitem(architectures._REGISTRY, MY_GPT.name)
    with pytest.raises(GrowthError, match=f"no architecture table '{MY_GPT.name}' .*register_architecture"):
        pickle.loads(packed)


def test_a_later_table_of_the_same_name_replaces_it() -> None:
    newer = replace(MY_GPT, rotary=True)
    register_architecture(newer)
    assert architecture_of(gpt()) is newer


def test_the_latest_table_that_matches_wins() -> None:
    newer = changed()
    register_architecture(newer)
    assert architecture_of(gpt()) is newer


def test_an_unknown_model_is_named_with_what_is_known() -> None:
    with pytest.raises(GrowthError, match=r"no architecture table for Linear .*known: bert, deit, gpt2"):
        architecture_of(nn.Linear(2, 2))
    with pytest.raises(GrowthError, match=r"T5Model \(type 't5'\)"):
        architecture_of(
            hf.T5Model(hf.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8, vocab_size=9))
        )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sizes": {"embed": Size("width")}}, "'changed': no size for layer"),
        ({"sizes": {"heads": Size("heads")}}, "no size for embed, layer"),
        ({"axes": {"q": "head*depth"}}, "axis 'q' uses unknown size 'depth'"),
        ({"axes": {"q": "head.q*depth.score"}}, r"axis 'q' uses unknown size 'depth\.score'"),
        ({"sizes": {"embed": 3, "layer": Size("depth")}}, "the size of embed is no Size"),
        ({"parameters": {"norm.weight": "embed:scale"}}, r"norm\.weight: unknown role 'scale'"),
        ({"parameters": {"qkv.weight": "q|k:inn, embed"}}, r"qkv\.weight: unknown role 'inn'"),
    ],
    ids=["no layer", "no embed", "unknown size", "tagged size", "no Size", "role", "role in a concatenation"],
)
def test_a_wrong_table_is_refused(table: dict[str, object], message: str) -> None:
    known = dict(architectures._REGISTRY)
    with pytest.raises(GrowthError, match=message):
        register_architecture(changed(**table))
    assert known == architectures._REGISTRY


def without(*patterns: str) -> dict[str, str]:
    return {k: v for k, v in MY_GPT.parameters.items() if k not in patterns}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"parameters": without("norm.bias", "positions.weight")},
            r"covers no parameter named positions\.weight, norm\.bias \(2 of 26\)",
        ),
        (
            {"parameters": without(*(k for k in MY_GPT.parameters if k.startswith("blocks")))},
            r"blocks\.0\.norm1\.weight, .* … \(22 of 26\)",
        ),
        (
            {"parameters": {**MY_GPT.parameters, "norm.bias": "embed, embed"}},
            r"norm\.bias: 1 dimensions in the source, 2 in the table",
        ),
        (
            {"parameters": {**MY_GPT.parameters, "blocks.*.up.bias": "embed"}},
            r"blocks\.0\.up\.bias: dimension 0 \(embed\) is 20 in the source, its config says 12",
        ),
        (
            {"parameters": {**MY_GPT.parameters, "blocks.*.qkv.weight": "q|k, embed:in"}},
            r"dimension 0 \(q\|k\) is 36 in the source, its config says 24",
        ),
        (
            {"parameters": {**MY_GPT.parameters, "norm.bias": "one"}},
            r"axis one: 12 in the source and 24 in the target \(parameter norm\.bias\)",
        ),
        ({"sizes": {**MY_GPT.sizes, "layer": Size("depth")}}, "the config has no 'depth'"),
        (
            {"sizes": {**MY_GPT.sizes, "layer": Size("heads")}},
            r"parameter blocks\.\*\.norm1\.weight: the source has it 2 times, its sizes say 3",
        ),
    ],
    ids=[
        "uncovered", "many uncovered", "dimensions", "wrong axis", "short concatenation", "fixed axis",
        "unknown size", "layer count",
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_the_model_is_refused(table: dict[str, object], message: str) -> None:
    register_architecture(changed(**table))
    small, large = gpt(), gpt(width=24, heads=6, hidden=40)
    before = snapshot(large)
    with pytest.raises(GrowthError, match=message):
        lf.grow(small, target=large, method="tile")
    assert all(torch.equal(t, before[n]) for n, t in snapshot(large).items())


@pytest.mark.parametrize(
    ("name", "pattern", "layer"),
    [
        ("tokens.weight", "tokens.weight", None),
        ("model.tokens.weight", "tokens.weight", None),
        ("model.blocks.3.up.weight", "blocks.*.up.weight", 3),
        ("blocks.12.up.weight", "blocks.*.up.weight", 12),
        ("model.head.weight", "model.head.weight", None),
    ],
)
def test_lookup_with_and_without_the_prefix(name: str, pattern: str, layer: int | None) -> None:
    table = changed(prefix="model", parameters={**MY_GPT.parameters, "model.head.weight": "vocab, embed:in"})
    assert table.lookup(name) == (pattern, layer, table.parameters[pattern])


@pytest.mark.parametrize(
    "name",
    [
        "modeltokens.weight",
        "model.model.tokens.weight",
        "blocks.up.weight",
        "blocks.x.up.weight",
        "blocks.1.up.weight.more",
        "other.tokens.weight",
        "tokens.weights",
        "blocks.*.up.bias.",
    ],
)
def test_lookup_of_what_no_row_covers(name: str) -> None:
    assert changed(prefix="model").lookup(name) is None


def test_a_number_in_a_pattern_is_itself() -> None:
    """A perceptron in an nn.Sequential has numbers that are no layers."""
    rows = {
        "blocks.*.mlp.0.weight": "ffn, embed:in",
        "blocks.*.mlp.2.weight": "embed, ffn:in",
        "stem.0.weight": "embed, channel",
        "stem.1.weight": "embed, embed:in",
    }
    table = changed(parameters=rows)
    assert table.lookup("blocks.5.mlp.0.weight") == ("blocks.*.mlp.0.weight", 5, "ffn, embed:in")
    assert table.lookup("blocks.5.mlp.2.weight") == ("blocks.*.mlp.2.weight", 5, "embed, ffn:in")
    assert table.lookup("blocks.5.mlp.1.weight") is None
    assert table.lookup("stem.1.weight") == ("stem.1.weight", None, "embed, embed:in")
    assert table.lookup("stem.2.weight") is None


def test_two_parameters_of_one_layer_never_share_a_row() -> None:
    """Of two matches the second would be left as it was, and nothing would say so."""

    parameters = {
        "tokens.weight": "vocab, embed",
        "blocks.*.*.weight": "embed:gain",
        "blocks.*.*.bias": "embed:shift",
    }
    with pytest.raises(GrowthError, match="blocks"):
        register_architecture(changed(parameters=parameters))


def test_a_size_may_be_absent_or_none_in_the_config() -> None:
    @dataclass
    class Sizes:
        hidden: int | None = None
        width: int = 12

    four_times = Size("hidden", default=lambda c: 4 * c.width)
    assert four_times.read(Sizes()) == 48
    assert four_times.read(Sizes(hidden=30)) == 30
    assert Size("inner", default=lambda c: 4 * c.width).read(Sizes()) == 48
    assert Size(default=lambda c: c.width // 2).read(Sizes()) == 6
    with pytest.raises(GrowthError, match="the config has no 'inner'"):
        Size("inner").read(Sizes())


# for every family: models and configs that between them have every parameter its table knows
CLASSES: dict[str, list[tuple[Callable[..., nn.Module], type, dict[str, object]]]] = {
    "gpt2": [
        (hf.GPT2Model, hf.GPT2Config, GPT2),
        (hf.GPT2LMHeadModel, hf.GPT2Config, {**GPT2, "tie_word_embeddings": False}),
        (hf.GPT2ForSequenceClassification, hf.GPT2Config, {**GPT2, "num_labels": 3}),
        (hf.GPT2ForTokenClassification, hf.GPT2Config, {**GPT2, "num_labels": 3}),
        (hf.GPT2ForQuestionAnswering, hf.GPT2Config, GPT2),
    ],
    "bert": [
        (hf.BertForPreTraining, hf.BertConfig, BERT),
        (hf.BertModel, hf.BertConfig, BERT),
        (hf.BertForMaskedLM, hf.BertConfig, {**BERT, "tie_word_embeddings": False}),
        (hf.BertForSequenceClassification, hf.BertConfig, {**BERT, "num_labels": 3}),
        (hf.BertForQuestionAnswering, hf.BertConfig, BERT),
    ],
    "roberta": [
        (hf.RobertaModel, hf.RobertaConfig, ROBERTA),
        (hf.RobertaForMaskedLM, hf.RobertaConfig, {**ROBERTA, "tie_word_embeddings": False}),
        (hf.RobertaForSequenceClassification, hf.RobertaConfig, {**ROBERTA, "num_labels": 3}),
        (hf.RobertaForTokenClassification, hf.RobertaConfig, {**ROBERTA, "num_labels": 3}),
        (hf.RobertaForQuestionAnswering, hf.RobertaConfig, ROBERTA),
    ],
    "llama": [
        (hf.LlamaModel, hf.LlamaConfig, LLAMA),
        (hf.LlamaForCausalLM, hf.LlamaConfig, {**LLAMA, "attention_bias": True, "mlp_bias": True}),
        (hf.LlamaForSequenceClassification, hf.LlamaConfig, {**LLAMA, "num_labels": 3}),
        (hf.LlamaForTokenClassification, hf.LlamaConfig, {**LLAMA, "num_labels": 3}),
    ],
    "mistral": [
        (hf.MistralForCausalLM, hf.MistralConfig, LLAMA),
        (hf.MistralForSequenceClassification, hf.MistralConfig, {**LLAMA, "num_labels": 3}),
        (hf.MistralForTokenClassification, hf.MistralConfig, {**LLAMA, "num_labels": 3}),
    ],
    "qwen2": [
        (hf.Qwen2ForCausalLM, hf.Qwen2Config, LLAMA),
        (hf.Qwen2ForSequenceClassification, hf.Qwen2Config, {**LLAMA, "num_labels": 3}),
        (hf.Qwen2ForTokenClassification, hf.Qwen2Config, {**LLAMA, "num_labels": 3}),
    ],
    "qwen3": [
        (
            hf.Qwen3ForCausalLM,
            hf.Qwen3Config,
            {**QWEN3, "attention_bias": True, "tie_word_embeddings": False},
        ),
        (hf.Qwen3ForSequenceClassification, hf.Qwen3Config, {**QWEN3, "num_labels": 3}),
        (hf.Qwen3ForTokenClassification, hf.Qwen3Config, {**QWEN3, "num_labels": 3}),
    ],
    "vit": [
        (hf.ViTModel, hf.ViTConfig, VIT),
        (hf.ViTForImageClassification, hf.ViTConfig, VIT),
        (lambda config: hf.ViTModel(config, use_mask_token=True), hf.ViTConfig, VIT),
    ],
    "deit": [
        (hf.DeiTModel, hf.DeiTConfig, VIT),
        (hf.DeiTForImageClassification, hf.DeiTConfig, VIT),
        (lambda config: hf.DeiTModel(config, use_mask_token=True), hf.DeiTConfig, VIT),
        (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, VIT),
    ],
}
# rows that a table has because a relative with the same table has them
BIASES = {f"layers.*.self_attn.{n}_proj.bias" for n in "qkvo"}
NORMS = {f"layers.*.self_attn.{n}_norm.weight" for n in "qk"}
MLP_BIASES = {f"layers.*.mlp.{n}_proj.bias" for n in ("gate", "up", "down")}
DISTILLED = {f"{n}_classifier.{p}" for n in ("cls", "distillation") for p in ("weight", "bias")}
SHARED = {
    "llama": NORMS,
    "mistral": BIASES | NORMS | MLP_BIASES,
    "qwen2": {"layers.*.self_attn.o_proj.bias"} | NORMS | MLP_BIASES,
    "qwen3": MLP_BIASES,
    "vit": {"embeddings.distillation_token"} | DISTILLED,
}


def tiny(make: Callable[..., nn.Module], config: type, sizes: dict[str, object]) -> nn.Module:
    with torch.device("meta"):
        return make(config(**sizes))


def names_of(name: str) -> list[list[str]]:
    return [[n for n, _ in tiny(*each).named_parameters()] for each in CLASSES[name]]


def test_every_built_in_table_is_tried() -> None:
    assert set(CLASSES) == set(architectures._REGISTRY) - {"my-gpt"}


@pytest.mark.parametrize("name", CLASSES)
def test_no_row_of_a_table_is_dead(name: str) -> None:
    table = architectures._REGISTRY[name]
    found = {row[0] for names in names_of(name) for n in names if (row := table.lookup(n))}
    assert set(table.parameters) - found == SHARED.get(name, set())


@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_of_every_class_is_covered(name: str) -> None:
    table = architectures._REGISTRY[name]
    for names in names_of(name):
        assert [n for n in names if table.lookup(n) is None] == []


@pytest.mark.parametrize("name", CLASSES)
def test_models_find_their_table(name: str) -> None:
    for each in CLASSES[name]:
        model = tiny(*each)
        assert architecture_of(model).name == name
        sizes = architecture_of(model).read_sizes(model)
        assert {"embed", "layer", "head", "head_dim", "ffn"} <= set(sizes)
        assert sizes["layer"] == 2
        assert sizes["ffn"] == 12


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (hf.LlamaConfig(hidden_size=32, num_attention_heads=8), (8, 8, 1, 4)),
        (hf.LlamaConfig(hidden_size=32, num_attention_heads=8, num_key_value_heads=2), (8, 2, 4, 4)),
        (
            hf.Qwen3Config(hidden_size=32, num_attention_heads=8, num_key_value_heads=4, head_dim=16),
            (8, 4, 2, 16),
        ),
    ],
    ids=["each its own key", "grouped", "its own head_dim"],
)
def test_heads_and_groups_are_read(config: object, expected: tuple[int, int, int, int]) -> None:
    table = architectures._REGISTRY[config.model_type]
    read = [table.sizes[n].read(config) for n in ("head", "kv_head", "group", "head_dim")]
    assert tuple(read) == expected


def test_gpt2s_hidden_units_default_to_four_times_the_width() -> None:
    size = architectures._REGISTRY["gpt2"].sizes["ffn"]
    assert size.read(hf.GPT2Config(n_embd=8)) == 32
    assert size.read(hf.GPT2Config(n_embd=8, n_inner=12)) == 12
