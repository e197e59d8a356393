"""Learning's memory: the accounting from shapes is that of live tensors, and gradients are not part of it."""

import dataclasses
import json
from functools import partial

import pytest
import torch

import ligo_fast as lf
from benchmarks import learning_memory as lm
from benchmarks import learning_paper as paper
from benchmarks.models import parameter_bytes
from ligo_fast.bench.cases import ligo
from ligo_fast.compute import backend_triton

PAIRS = {
    "tiny": lm.TINY,
    "grouped heads": paper.LlamaPair(paper.Sizes(2, 16, 1, 20), paper.Sizes(5, 48, 3, 52), 8, 32, tokens=16),
    "same depth": paper.LlamaPair(paper.Sizes(2, 16, 2, 20), paper.Sizes(2, 32, 4, 40), 8, 32, tokens=16),
    "bfloat16": dataclasses.replace(lm.TINY, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_accounting_is_that_of_live_tensors(name, on_disk, tmp_path):
    pair = PAIRS[name]
    op = lm.operator(pair, torch.device("cpu"), str(tmp_path) if on_disk else "")
    opt = lf.GrowthOptimizer(op, lr=1e-3, release_grads=True)
    op.large.gradient_checkpointing_enable({"use_reentrant": False})
    kept, logits, early = [], [], []
    for layer in op.large.model.layers:
        layer.register_forward_pre_hook(lambda m, args: kept.append(args[0].detach()))
    op.large.lm_head.register_forward_hook(lambda m, args, out: logits.append(out.detach()))
    op.large.lm_head.weight.register_post_accumulate_grad_hook(
        lambda p: early.append(sum(f.grad.nbytes for f in op.parameters() if f.grad is not None))
    )
    op.large.train()
    op.large(**pair.batch("cpu")).loss.backward()
    opt.step()
    moments = [t for s in opt.inner.state.values() for t in s.values() if t.dim()]
    held = paper.moments(pair, on_disk)
    for at in held.values():
        assert at["large weights"] == parameter_bytes(op.large)
        small = sum(p.nbytes for p in op.small.parameters() if not p.is_meta)
        assert at["small weights"] == small and bool(small) is not on_disk
        assert at["factors and their moments"] == parameter_bytes(op) + sum(t.nbytes for t in moments)
        gone = at is held["writing"]
        assert at["checkpoints"] == (0 if gone else sum(t.nbytes for t in kept[: pair.large.layers]))
    assert held["output head"]["factors' gradients"] == early[0]
    for moment in ("layer", "writing"):
        assert held[moment]["factors' gradients"] == sum(p.grad.nbytes for p in op.parameters())
    assert held["output head"]["one gradient"] == op.large.lm_head.weight.nbytes
    inside = [p.nbytes for p in op.large.model.layers.parameters()]
    assert held["layer"]["one gradient"] == max(inside)
    assert held["output head"]["logits or one layer"] >= 2 * logits[0].nbytes


def plain(pair):
    """Bytes of AdamW training with the same activations."""
    held = [paper.moments(pair)[m] for m in ("output head", "layer")]
    return 4 * held[0]["large weights"] + held[0]["checkpoints"] + held[0]["logits or one layer"]


def test_a_7b_target_fits_one_80_gb_gpu_on_paper():
    held = paper.accounting(paper.SEVEN_B)
    assert 7.0e9 < held["large weights"] / 2 < 7.5e9 and 1.0e9 < held["small weights"] / 2 < 1.2e9
    assert sum(held.values()) < 30e9
    assert sum(held.values()) < 0.4 * plain(paper.SEVEN_B)


def test_a_7b_target_meets_its_goal_on_paper_with_the_small_model_on_disk():
    here, away = (sum(paper.accounting(paper.SEVEN_B, on_disk).values()) for on_disk in (False, True))
    assert away < paper.paper_goal(paper.SEVEN_B) < here


@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_writing_works_in_what_the_accounting_says(limit, device, on_kernels, monkeypatch):
    """In one wave, and in as many as an eighth of the model makes."""
    monkeypatch.setattr(backend_triton, "Plan", partial(backend_triton.Plan, workspace=limit))
    pair = paper.TINY
    op = ligo(pair.model(pair.small, device), pair.model(pair.large, device))
    op.apply_()
    assert op._execution.compiled.plan.plan.workspace.nbytes == pytest.approx(
        paper.apply_workspace(pair, limit), rel=0.02
    )
    assert paper.apply_workspace(pair, 1) < paper.apply_workspace(pair)


def test_steps_are_timed_in_turn():
    found = lm.step_ratios(lm.TINY, torch.device("cpu"), rounds=2)
    assert list(found) == [f"learning / {lm.VARIANTS[0]}", f"{lm.ON_DISK} / learning"]
    assert all(r["q1"] > 0 for r in found.values())


@pytest.mark.parametrize("variant", lm.VARIANTS)
def test_the_variants_run_and_learn(variant):
    found = lm.run(variant, lm.TINY, torch.device("cpu"), steps=4)
    assert found["losses"][-1] < found["losses"][0] and found["step seconds"]["median"] > 0
    assert found["large weights"] == paper.accounting(lm.TINY)["large weights"]


def test_the_documents_figures_are_those_of_the_accounting():
    text = (lm.RESULTS.parents[2] / "docs" / "memory.md").read_text()
    totals = [paper.paper_goal(paper.SEVEN_B), plain(paper.SEVEN_B)]
    for on_disk in (False, True):
        for held in paper.moments(paper.SEVEN_B, on_disk).values():
            totals += [*held.values(), sum(held.values())]
    for bytes_ in filter(None, totals):
        assert f"{bytes_ / 1e9:.2f} GB" in text, bytes_


def test_the_goal_is_that_of_the_jsons_plain_training():
    run = json.loads(lm.RESULTS.read_text())
    assert run["goal"] == lm.limit(run["variants"][lm.VARIANTS[0]])
