"""A checkpoint folder as the source of weights: which tensor is which parameter, and what is refused."""

import copy
import os

import pytest
import torch
from models import build, grow_copy, on_meta, same, snapshot
from safetensors.torch import load_file, save_file

import ligo_fast as lf


def weights(folder):
    return folder / "model.safetensors"


def rewrite(folder, change):
    """Change the tensors of a folder's file."""
    tensors = load_file(weights(folder))
    change(tensors)
    save_file(tensors, weights(folder), {"format": "pt"})


def test_names_without_the_heads_prefix_and_another_dtype(tmp_path):
    small = build("gpt2-lm", dtype=torch.bfloat16)
    small.transformer.save_pretrained(tmp_path)
    assert "wte.weight" in load_file(weights(tmp_path))
    grown = []
    for model, source in ((copy.deepcopy(small).float(), None), (on_meta(small.float()), tmp_path)):
        op = lf.GrowthOperator(model, grow_copy(small), seed=1, source=source)
        grown.append(op.apply_())
    for (n, p), q in zip(grown[0].named_parameters(), grown[1].parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-6, msg=n)


def test_a_source_that_has_weights_needs_no_folder(saved):
    small = build("gpt2-lm")
    folder, _ = saved(small)
    with pytest.raises(lf.GrowthError, match=r"source='.*' is for a small model on the meta device"):
        lf.GrowthOperator(small, grow_copy(small), source=folder)


UP = "model.layers.1.mlp.up_proj.weight"
HEAD = "lm_head.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP), f"no tensor for parameter {UP}"),
        (
            lambda t: t.update({UP: torch.zeros(3, 16)}),
            rf"model.safetensors: tensor {UP}: \[3, 16\], .* is \[12, 16\]",
        ),
        (lambda t: t[UP].fill_(float("nan")), rf"parameter {UP} \(.*model.safetensors\) .* 192 values"),
        (lambda t: t.update({UP: t[UP].to(torch.int32)}), rf"tensor {UP}: weights of torch.int32"),
        (lambda t: t.update({"model.other.weight": torch.zeros(3)}), "tensor model.other.weight"),
        (lambda t: t.pop(HEAD), "tie_word_embeddings=false, no head is there"),
    ],
)
def test_a_wrong_tensor_is_named_before_anything_is_written(change, message, saved):
    small = build("llama-lm")
    folder, away = saved(small)
    rewrite(folder, change)
    large = grow_copy(small)
    before = snapshot(large)
    with pytest.raises(lf.GrowthError, match=message):
        lf.GrowthOperator(away, large, source=folder)
    assert same(before, large)


def test_a_folder_of_another_model_is_refused(saved, tmp_path):
    small = build("llama-lm")
    folder, away = saved(small)
    with pytest.raises(lf.GrowthError, match="no folder"):
        lf.GrowthOperator(away, grow_copy(small), source=folder / "none")
    other = build("gpt2-lm")
    with pytest.raises(lf.GrowthError, match=r"config.json: model_type: a 'llama', the source is a 'gpt2'"):
        lf.GrowthOperator(on_meta(other), grow_copy(other), source=folder)
    tied = build("llama-tied")
    with pytest.raises(lf.GrowthError, match=r"tensor lm_head.weight: an output head that the source ties"):
        lf.GrowthOperator(on_meta(tied), grow_copy(tied), source=folder)
    os.rename(weights(folder), folder / "pytorch_model.bin")
    with pytest.raises(lf.GrowthError, match="pickled weights never"):
        lf.GrowthOperator(away, grow_copy(small), source=folder)


@pytest.mark.parametrize("how", ["touched", "replaced", "shorter", "gone"])
def test_a_file_that_changed_is_an_error_before_anything_is_written(how, saved):
    small = build("llama-lm")
    folder, away = saved(small)
    op = lf.GrowthOperator(away, grow_copy(small), source=folder)
    before, file = snapshot(op.large), weights(folder)
    if how == "touched":
        os.utime(file, ns=(1, 1))
    elif how == "replaced":
        file.rename(folder / "old")
        file.write_bytes((folder / "old").read_bytes())
        os.utime(file, ns=(os.stat(folder / "old").st_atime_ns, os.stat(folder / "old").st_mtime_ns))
    elif how == "shorter":
        os.truncate(file, 100)
    else:
        file.unlink()
    with pytest.raises(lf.GrowthError, match=r"model.safetensors: (the file has changed|No such file)"):
        op.apply_()
    assert same(before, op.large)


def test_a_file_that_changes_while_it_is_read_is_an_error(saved):
    small = build("llama-lm")
    folder, away = saved(small)
    op = lf.GrowthOperator(away, grow_copy(small), source=folder)
    os.utime(weights(folder), ns=(1, 1))
    with pytest.raises(lf.GrowthError, match="has changed"):
        op.files.read(UP, torch.float32, op.device)
