"""Learning's memory: the accounting from shapes is that of live tensors, and gradients are not part of it."""

import dataclasses
import json

import pytest
import torch

from benchmarks import learning_memory as lm
from benchmarks.models import parameter_bytes
from ligo_fast.bench.cases import ligo

PAIRS = {
    "tiny": lm.TINY,
    "grouped heads": lm.LlamaPair(lm.Sizes(2, 16, 1, 20), lm.Sizes(5, 48, 3, 52), 8, 32, tokens=16),
    "same depth": lm.LlamaPair(lm.Sizes(2, 16, 2, 20), lm.Sizes(2, 32, 4, 40), 8, 32, tokens=16),
    "bfloat16": dataclasses.replace(lm.TINY, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_accounting_is_that_of_live_tensors(name):
    pair = PAIRS[name]
    small = pair.model(pair.small, "cpu")
    op = ligo(small, pair.model(pair.large, "meta"))
    opt = lm.lf.GrowthOptimizer(op, lr=1e-3, release_grads=True)
    op.large.gradient_checkpointing_enable({"use_reentrant": False})
    kept, logits = [], []
    for layer in op.large.model.layers:
        layer.register_forward_pre_hook(lambda m, args: kept.append(args[0].detach()))
    op.large.lm_head.register_forward_hook(lambda m, args, out: logits.append(out.detach()))
    op.large.train()
    op.large(**pair.batch("cpu")).loss.backward()
    opt.step()
    moments = [t for s in opt.inner.state.values() for t in s.values() if t.dim()]
    paper = lm.accounting(pair)
    assert paper["large weights"] == parameter_bytes(op.large)
    assert paper["small weights"] == parameter_bytes(small)
    assert paper["factors"] == parameter_bytes(op)
    grads = sum(p.grad.nbytes for p in op.parameters())
    assert paper["their gradients and moments"] == grads + sum(t.nbytes for t in moments)
    assert paper["one gradient"] == max(p.nbytes for p in op.large.parameters())
    assert paper["checkpoints"] == sum(t.nbytes for t in kept[: pair.large.layers])
    assert paper["one layer or the logits"] >= 2 * logits[0].nbytes


def test_a_7b_target_fits_one_80_gb_gpu_on_paper():
    paper = lm.accounting(lm.SEVEN_B)
    assert 7.0e9 < paper["large weights"] / 2 < 7.5e9 and 1.0e9 < paper["small weights"] / 2 < 1.2e9
    assert sum(paper.values()) + lm.apply_workspace(lm.SEVEN_B) < 30e9
    plain = 4 * paper["large weights"] + paper["checkpoints"] + paper["one layer or the logits"]
    assert sum(paper.values()) < 0.4 * plain


def test_the_variants_run_and_learn():
    runs = {v: lm.run(v, lm.TINY, torch.device("cpu"), steps=4) for v in lm.VARIANTS}
    for found in runs.values():
        assert found["losses"][-1] < found["losses"][0] and found["step seconds"]["median"] > 0
    assert runs["learning"]["large weights"] == runs["plain AdamW"]["large weights"]


def test_the_documents_figures_are_those_of_the_accounting():
    paper = lm.accounting(lm.SEVEN_B)
    total = sum(paper.values())
    plain = 4 * paper["large weights"] + paper["checkpoints"] + paper["one layer or the logits"]
    text = (lm.RESULTS.parents[2] / "docs" / "memory.md").read_text()
    for bytes_ in (*paper.values(), total, plain, lm.apply_workspace(lm.SEVEN_B)):
        assert f"{bytes_ / 1e9:.2f} GB" in text, bytes_


def test_the_documents_measurement_is_the_jsons():
    run = json.loads(lm.RESULTS.read_text())
    plain, learning = (run["variants"][v] for v in lm.VARIANTS)
    own = run["learning's own: small model, factors, their gradients and moments"]
    assert run["goal"] == lm.limit(plain)
    text = (lm.RESULTS.parents[2] / "docs" / "memory.md").read_text()
    for size in (plain["peak"], learning["peak"], run["goal"], own):
        assert f"{size / 1e6:.0f} MB" in text, size
    for share in (run["peak / goal"] - 1, 1 - run["peak less its own / goal"]):
        assert f"{share:.1%}" in text, share
