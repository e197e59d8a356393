"""What a model has beside parameters: its dtype, and values that were trained."""

from __future__ import annotations

import models
import pytest
import torch

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
