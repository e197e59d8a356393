"""What a model has beside parameters: its dtype, and values that were trained."""

from __future__ import annotations

import models
import pytest
import torch
from torch import nn

import ligo_fast as lf
from ligo_fast.checkpoint import grow_checkpoint

HALF = [torch.bfloat16, torch.float16]
WIDER = {"width": 32, "depth": 3, "method": "tile+zero"}


def far_apart(seed: int = 0):
    """A batch whose positions are hundreds apart, so that a rounded frequency turns them by other angles."""
    batch = models.make_batch("llama-lm", seed=seed)
    ids = batch["input_ids"]
    return {"input_ids": ids, "position_ids": (torch.arange(ids.shape[1]) * 617).expand_as(ids)}


def loaded(folder, dtype, name="llama-lm"):
    """A model as users have it: from a folder, its weights in half precision."""
    models.build(name, max_position_embeddings=8192).save_pretrained(folder)
    return models.TINY[name].cls.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["llama-lm", "qwen3-lm"])
def test_rotary_frequencies_are_not_rounded_to_half_precision(name, dtype, tmp_path):
    small = loaded(tmp_path / "small", dtype, name)
    assert small.model.rotary_emb.inv_freq.dtype == torch.float32
    large = lf.grow(small, **{**WIDER, "width": 2 * small.config.hidden_size})
    assert {p.dtype for p in large.parameters()} == {dtype}
    assert torch.equal(large.model.rotary_emb.inv_freq, small.model.rotary_emb.inv_freq)
    assert large.model.rotary_emb.inv_freq.dtype == torch.float32
    certificate = lf.certify(small, large, far_apart())
    assert certificate.exact, certificate
    large.save_pretrained(tmp_path / "large")
    again = type(large).from_pretrained(tmp_path / "large", dtype=dtype)
    assert models.same(models.snapshot(large), again), "what is trained is what is saved"


@pytest.mark.parametrize("dtype", HALF)
def test_a_cast_model_and_its_grown_one_have_the_same_frequencies(dtype):
    small = models.build("llama-lm", dtype=dtype, max_position_embeddings=8192)
    assert small.model.rotary_emb.inv_freq.dtype == dtype
    large = lf.grow(small, **WIDER)
    assert torch.equal(large.model.rotary_emb.inv_freq, small.model.rotary_emb.inv_freq)
    assert large.model.rotary_emb.inv_freq.dtype == dtype
    assert lf.certify(small, large, far_apart()).exact


@pytest.mark.parametrize("dtype", HALF)
def test_frequencies_of_a_cast_meta_target_are_the_small_models(dtype, tmp_path):
    small = loaded(tmp_path / "small", dtype)
    target = models.on_meta(lf.grow(small, **WIDER))
    assert target.model.rotary_emb.inv_freq.dtype == dtype
    large = lf.grow(small, target=target, method="tile+zero")
    assert large is target
    assert torch.equal(large.model.rotary_emb.inv_freq, small.model.rotary_emb.inv_freq)
    assert lf.certify(small, large, far_apart()).exact


@pytest.mark.parametrize("dtype", HALF)
def test_a_half_precision_folder_grows_to_the_same_function(dtype, tmp_path):
    small = loaded(tmp_path / "full", dtype)
    small.save_pretrained(tmp_path / "small")
    grow_checkpoint(tmp_path / "small", tmp_path / "out", **WIDER)
    large = type(small).from_pretrained(tmp_path / "out", dtype=dtype)
    assert models.same(models.snapshot(lf.grow(small, **WIDER)), large)
    assert lf.certify(small, large, far_apart()).exact


class Config:
    model_type = "with buffers"

    def __init__(self, width=8, depth=2, hidden=12):
        self.width, self.depth, self.hidden = width, depth, hidden


class Block(nn.Module):
    def __init__(self, config, normed):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.up, self.down = nn.Linear(config.width, config.hidden), nn.Linear(config.hidden, config.width)
        if normed:
            self.register_buffer("offset", torch.zeros(3))

    def forward(self, x):
        shift = self.offset.sum() if hasattr(self, "offset") else 0.0
        return x + self.down(torch.relu(self.up(self.norm(x)))) * (1 + shift)


class Model(nn.Module):
    """Pre-norm blocks, with statistics of the residual stream, a temperature and a table of integers."""

    layered = False

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tok = nn.Embedding(11, config.width)
        self.blocks = nn.ModuleList(Block(config, self.layered) for _ in range(config.depth))
        self.stats = nn.BatchNorm1d(config.width, affine=False)
        self.head = nn.Linear(config.width, 11, bias=False)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("units", torch.arange(config.width))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x):
        h = self.tok(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.stats(h.flatten(0, 1)).view_as(h)) * self.temperature


class Layered(Model):
    layered = True


def registered(buffers=()):
    return lf.register_architecture(
        lf.Architecture(
            "with buffers",
            build=lambda model, config: type(model)(config),
            sizes={"embed": lf.Size("width"), "layer": lf.Size("depth"), "ffn": lf.Size("hidden")},
            parameters={
                "tok.weight": "vocab, embed",
                "blocks.*.norm.weight": "embed:gain",
                "blocks.*.norm.bias": "embed:shift",
                "blocks.*.up.weight": "ffn, embed:in",
                "blocks.*.up.bias": "ffn",
                "blocks.*.down.weight": "embed, ffn:in",
                "blocks.*.down.bias": "embed",
                "head.weight": "vocab, embed:in",
            },
            buffers=buffers,
        )
    )


def trained(cls=Model):
    """A model whose buffers have seen data."""
    model, rng = cls(Config()).double(), torch.Generator().manual_seed(0)
    for _ in range(4):
        model(torch.randint(11, (8, 6), generator=rng))
    with torch.no_grad():
        model.temperature.fill_(0.3)
        for block in model.blocks if cls.layered else ():
            block.offset.add_(torch.arange(3))
    return model.eval()


BATCH = torch.arange(10).view(2, 5)


@pytest.mark.parametrize("given", [False, True], ids=["made here", "given"])
@pytest.mark.parametrize("sizes", [{"hidden": 24}, {"depth": 4}], ids=str)
def test_trained_buffers_of_the_same_shape_are_copied(sizes, given):
    registered()
    small = trained()
    if given:
        sizes = {"target": Model(Config(**sizes)).double().eval()}
    large = lf.grow(small, **sizes, method="tile+zero")
    for name in ("temperature", "stats.running_mean", "stats.running_var", "stats.num_batches_tracked"):
        assert torch.equal(large.get_buffer(name), small.get_buffer(name)), name
    certificate = lf.certify(small, large, BATCH)
    assert certificate.exact, certificate
    assert not torch.equal(lf.grow(small, hidden=24, method="scratch").temperature, small.temperature)


@pytest.mark.parametrize(
    ("cls", "how", "said"),
    [
        (Model, {"width": 16}, r"buffer stats.running_mean: \[8\] in the source, \[16\] in the target"),
        (Layered, {"depth": 4}, r"buffer blocks.0.offset: in 2 layers of the source, in 4 of the target"),
        (Layered, {"method": "1,0"}, r"buffer blocks.0.offset: in 2 layers of the source, in 2 of"),
    ],
)
def test_trained_buffers_that_would_have_to_grow_are_named(cls, how, said):
    registered()
    small, large = trained(cls), cls(Config(how.get("width", 8), how.get("depth", 2))).double()
    method = how.get("method", "tile+zero")
    before = models.snapshot(large)
    with pytest.raises(lf.GrowthError, match=said):
        lf.grow(small, target=large, method=method)
    with pytest.raises(lf.GrowthError, match=said):
        lf.GrowthOperator(small, large, method=method)
    assert models.same(before, large)
    registered(buffers=("stats.running_mean", "stats.running_var", "blocks.*.offset"))
    assert lf.grow(small, target=large, method=method) is large


def test_buffers_of_layers_that_stay_in_place_are_copied():
    registered()
    small = trained(Layered)
    large = lf.grow(small, hidden=24, method="tile")
    assert torch.equal(large.blocks[1].offset, small.blocks[1].offset)
    assert lf.certify(small, large, BATCH).exact
