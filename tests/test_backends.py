"""Whole operators on the kernels against the same on torch; the choice of a backend; what ends a plan."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

import ligo_fast as lf
from ligo_fast.compute import backends, float32
from ligo_fast.compute.backends import resolve_precision, why_not_triton

DEVICE = os.environ["LIGO_FAST_TEST_DEVICE"]


def pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    return models.build(name, dtype=dtype).to(DEVICE), models.build_wider(name, 3, dtype).to(DEVICE)


def run(name: str, backend: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, ...]:
    """The operator after two steps of learning, and the first step's weights and gradients."""
    monkeypatch.setenv("LIGO_FAST_BACKEND", backend)
    small, large = pair(name)
    op = lf.GrowthOperator(small, large, "ligo", seed=0, precision="ieee", **options)
    optimizer = lf.GrowthOptimizer(op, torch.optim.SGD, lr=1e-2)
    weights = {n: p.detach().clone() for n, p in large.named_parameters()}
    batch = {k: v.to(DEVICE) for k, v in models.make_batch(name).items()}
    gradients: dict[str, Tensor] = {}
    for _ in range(2):
        optimizer.zero_grad()
        models.loss_of(large, batch).backward()
        optimizer.step()
        gradients = gradients or {n: p.grad.clone() for n, p in op.named_parameters() if p.grad is not None}
    return op, weights, gradients, op._execution.compiled.left_to_torch()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt2-lm", {}),
        ("bert-mlm", {}),
        ("llama-tied", {}),
        ("vit-class", {}),
        ("bert-mlm", {"form": "dense"}),
        ("bert-mlm", {"per_layer": "target"}),
    ],
)
def test_an_operator_on_the_kernels_is_one_on_torch(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, weights, gradients, left = run(name, "triton", monkeypatch, **options)
    theirs, want_weights, want_gradients, _ = run(name, "torch", monkeypatch, **options)
    assert ours._execution.compiled.plan.covered
    assert theirs._execution.compiled.plan is None
    assert options.get("per_layer") or not left, "all of a LiGO with shared maps is compiled"
    for n, w in want_weights.items():
        assert (weights[n] - w).abs().max() <= 1e-5 * w.abs().max(), n
    scale = max(g.abs().max() for g in want_gradients.values())
    for n, g in want_gradients.items():  # the gradient of a key's bias is zero but for rounding
        assert (gradients[n] - g).abs().max() <= 1e-4 * g.abs().max() + 1e-6 * scale, n
    for (n, p), q in zip(ours.large.named_parameters(), theirs.large.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-4 * q.abs().max(), n


def test_a_replaced_parameter_is_found(on_kernels: None) -> None:
    small, large = pair("gpt2-lm")
    op = lf.GrowthOperator(small, large, "ligo")
    op.apply_()
    want = {n: p.detach().clone() for n, p in large.named_parameters()}
    block = large.transformer.h[0]  # type: ignore[union-attr]
    block.mlp.c_fc.weight = nn.Parameter(torch.zeros_like(block.mlp.c_fc.weight))
    block.ln_1.weight.data = torch.zeros_like(block.ln_1.weight)
    op.apply_()
    for n, p in large.named_parameters():
        assert torch.equal(p, want[n]), n


@pytest.mark.parametrize("change", ["resized", "cast", "moved"])
def test_a_changed_parameter_is_refused(change: str, on_kernels: None) -> None:
    small, large = pair("gpt2-lm")
    op = lf.GrowthOperator(small, large, "ligo")
    op.apply_()
    owner = large.transformer.h[1].mlp.c_fc  # type: ignore[union-attr]
    before = models.snapshot(large)
    if change == "moved":
        owner.bias = nn.Parameter(owner.bias.detach().to("meta"))
    else:
        owner.bias.data = owner.bias.data[:-1] if change == "resized" else owner.bias.data.double()
    with pytest.raises(lf.GrowthError, match=r"transformer\.h\.1\.mlp\.c_fc\.bias is now"):
        op.apply_()
    for n, q in large.named_parameters():
        assert q is owner.bias or torch.equal(q, before[n]), n


@pytest.mark.parametrize("side", ["small", "large"])
@pytest.mark.parametrize("pulling", [False, True])
def test_a_removed_parameter_is_refused(side: str, pulling: bool, on_kernels: None) -> None:
    op = lf.GrowthOperator(*pair("gpt2-lm"), "ligo")
    op.apply_()
    for p in op.large.parameters():
        p.grad = torch.ones_like(p)
    model = op.small if side == "small" else op.large
    del model.transformer.h[0].mlp.c_fc.weight  # type: ignore[union-attr]
    with pytest.raises(lf.GrowthError, match=rf"h\.0\.mlp\.c_fc\.weight of the {side} model is gone"):
        op.pullback() if pulling else op.apply_()


@pytest.mark.parametrize("planned", [False, True])
def test_a_parameter_without_memory_is_refused(planned: bool, on_kernels: None) -> None:
    small, large = pair("gpt2-lm")
    op = lf.GrowthOperator(small, large, "ligo")
    if planned:
        op.apply_()
    large.transformer.h[1].mlp.c_fc.weight.untyped_storage().resize_(0)  # type: ignore[union-attr]
    with pytest.raises(lf.GrowthError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight cannot be read"):
        op.apply_()


def test_a_sparse_gradient_is_refused(on_kernels: None) -> None:
    small, large = pair("gpt2-lm")
    op = lf.GrowthOperator(small, large, "ligo")
    op.apply_()
    table = large.transformer.wte.weight  # type: ignore[union-attr]
    table.grad = torch.ones_like(table).to_sparse()
    with pytest.raises(lf.GrowthError, match=r"gradient of parameter transformer\.wte\.weight .* sparse"):
        op.pullback()


def test_a_copy_has_a_plan_of_its_own(on_kernels: None) -> None:
    small, large = pair("gpt2-lm")
    op = lf.GrowthOperator(small, large, "ligo")
    op.apply_()
    before = models.snapshot(large)
    again = copy.deepcopy(op)
    with torch.no_grad():
        for p in again.parameters():
            p.mul_(2)
    again.apply_()
    assert models.same(before, large)
    assert not models.same(before, again.large)
    assert again._execution.compiled.plan.plan is not op._execution.compiled.plan.plan


def test_writing_marks_the_parameters_as_changed(on_kernels: None) -> None:
    """Autograd must notice when a weight it saved is overwritten."""
    small, large = pair("gpt2-lm")
    op = lf.GrowthOperator(small, large, "ligo")
    loss = models.loss_of(large, {k: v.to(DEVICE) for k, v in models.make_batch("gpt2-lm").items()})
    op.apply_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_of_other_strides(on_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for turned in (False, True):
        small, large = pair("gpt2-lm")
        op = lf.GrowthOperator(small, large, "ligo", precision="ieee")
        op.apply_()
        for p in large.parameters():  # not of a loss: what torch runs for it on a GPU may differ in a bit
            p.grad = p.detach().sin()
            if turned and p.dim() == 2:
                p.grad = p.grad.t().contiguous().t()
        op.pullback()
        found.append([p.grad for p in op.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_factor_of_other_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient has the factor's strides: the kernels, which write it in order, leave it to torch."""
    found = []
    for backend in ("triton", "torch"):
        monkeypatch.setenv("LIGO_FAST_BACKEND", backend)
        small, large = pair("gpt2-lm")
        op = lf.GrowthOperator(small, large, "ligo", seed=3)
        for p in op.parameters():
            p.data = p.data.t().contiguous().t() if p.dim() == 2 else p.data
        op.apply_()
        for n, p in large.named_parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))).to(p)
        op.pullback()
        found.append({n: p.grad for n, p in op.named_parameters()})
    for n, want in found[1].items():
        assert (found[0][n] - want).abs().max() <= 1e-4 * want.abs().max() + 1e-5, n


def test_the_next_call_sees_what_changed(on_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that finds all as it was asks little; everything that it stands on is asked."""
    small, large = pair("gpt2-lm")
    op = lf.GrowthOperator(small, large, "ligo", seed=0, precision="ieee")
    named, factors = dict(large.named_parameters()), dict(op.named_parameters())

    def gradients() -> None:
        for n, p in large.named_parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))).to(p)
        for p in factors.values():
            p.grad = None

    def both() -> dict[str, Tensor]:
        """What a call gives; it is done twice."""
        for _ in range(2):
            gradients()
            op.apply_()
            op.pullback()
        assert op._execution.compiled.asked == os.environ["LIGO_FAST_BACKEND"]
        return {n: p.detach().clone() for n, p in large.named_parameters()} | {
            f"d {n}": p.grad.clone() for n, p in factors.items() if p.grad is not None
        }

    first = both()
    last = max(named)  # a norm: other memory, the same layout
    named[last].data = named[last].data.clone()
    assert all(torch.equal(t, first[n]) for n, t in both().items())
    with torch.no_grad():
        next(p for p in small.parameters()).mul_(2)
    changed = both()
    assert any(not torch.equal(t, first[n]) for n, t in changed.items())
    name, frozen = next(iter(factors.items()))
    frozen.requires_grad_(False)
    rest = both()
    assert rest.keys() == changed.keys() - {f"d {name}"}
    assert all(torch.equal(t, changed[n]) for n, t in rest.items())
    frozen.requires_grad_(True)
    plan = op._execution.compiled.plan
    large.zero_grad()
    with pytest.raises(lf.GrowthError, match="no parameter of the large model has a gradient"):
        op.pullback()
    gradients()
    odd = next(p for p in large.parameters() if p.dim() == 2)
    odd.data = odd.data.t()
    before = [p.detach().clone() for p in large.parameters()]
    with pytest.raises(lf.GrowthError, match="parameter"):
        op.apply_()
    assert all(torch.equal(a, b) for a, b in zip(large.parameters(), before, strict=True))
    odd.data = odd.data.t()
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    monkeypatch.setattr(type(plan), "apply", lambda plan: pytest.fail("the kernels were switched off"))
    op.apply_()


def test_the_workspace_can_be_given_back(on_kernels: None) -> None:
    """As `release_grads` does for the forward pass; the next call has it again."""
    small, large = pair("gpt2-lm")
    op = lf.GrowthOperator(small, large, "ligo")
    op.apply_()
    want = models.snapshot(large)
    plan = op._execution.compiled.plan.plan
    assert plan.workspace.nbytes > 0
    op._execution.free()
    assert plan.workspace.nbytes == 0
    for p in large.parameters():
        p.data.fill_(torch.nan)
    op.apply_()
    assert plan.workspace.nbytes > 0
    assert all(torch.equal(p, want[n]) for n, p in large.named_parameters())


def test_training_free_and_float64_growth_is_left_to_torch(on_kernels: None) -> None:
    small, large = pair("gpt2-lm")
    op = lf.GrowthOperator(small, large, "net2net+stack")
    op.apply_()
    assert op._execution.compiled.plan is not None
    names = {op.pieces[n].name for n in op._execution.compiled.plan.covered}
    assert not any("c_fc" in n for n in names)
    small, large = pair("gpt2-lm", torch.float64)
    op = lf.GrowthOperator(small, large, "ligo")
    op.apply_()
    assert op._execution.compiled.plan is None


def test_which_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.delenv("LIGO_FAST_BACKEND", raising=False)
    assert "cpu" in why_not_triton(cpu)
    assert why_not_triton(torch.device("cuda")) == ""
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    assert why_not_triton(torch.device("cuda")) == "LIGO_FAST_BACKEND=torch"
    monkeypatch.setenv("LIGO_FAST_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(lf.GrowthError, match="tensors on cpu"):
        why_not_triton(cpu)
    monkeypatch.setenv("LIGO_FAST_BACKEND", "cuda")
    with pytest.raises(lf.GrowthError, match="none of 'auto', 'torch', 'triton'"):
        why_not_triton(cpu)


def test_which_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for number, hip, why in (((8, 0), None, ""), ((7, 5), None, "later, not 7.5"), ((9, 4), "6.4", "ROCm")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, number=number: number)
        monkeypatch.setattr(torch.version, "hip", hip)
        backends._unsuitable.cache_clear()
        monkeypatch.setenv("LIGO_FAST_BACKEND", "auto")
        assert why in why_not_triton(gpu) and bool(why) == bool(why_not_triton(gpu))
        monkeypatch.setenv("LIGO_FAST_BACKEND", "triton")
        with pytest.raises(lf.GrowthError, match=why) if why else contextlib.nullcontext():
            why_not_triton(gpu)
    backends._unsuitable.cache_clear()


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("auto", torch.bfloat16) == "bf16"
    assert resolve_precision("auto", torch.float16) == "tf32"
    with pytest.raises(lf.GrowthError, match="precision='fp8'"):
        lf.GrowthOperator(*pair("gpt2-lm"), "ligo", precision="fp8")


@pytest.fixture
def float32_setting() -> Iterator[None]:
    """Torch's own setting is put back after a test changes it."""
    yield
    torch.backends.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize(
    ("legacy", "everywhere", "cuda", "want"),
    [
        ("highest", None, None, "ieee"),
        ("high", None, None, "tf32"),
        ("medium", None, None, "bf16"),
        ("highest", None, "tf32", "tf32"),
        ("high", None, "ieee", "ieee"),
        ("highest", "tf32", None, "tf32"),
        ("highest", "ieee", None, "ieee"),
        ("highest", "tf32", "ieee", "ieee"),
        ("highest", "bf16", None, "ieee"),  # which only products on a CPU have
    ],
)
def test_precision_follows_both_settings_of_torch(
    legacy: str, everywhere: str | None, cuda: str | None, want: str, float32_setting: None
) -> None:
    torch.set_float32_matmul_precision(legacy)
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = {"highest": "none"}.get(legacy, matmul.fp32_precision)
    if everywhere is not None:
        torch.backends.fp32_precision = everywhere
    if cuda is not None:
        matmul.fp32_precision = cuda
    assert lf.GrowthOperator(*pair("gpt2-lm"), "ligo").precision == want
    before = matmul.fp32_precision
    for wanted in ("ieee", "tf32", "bf16"):
        with float32.using(wanted, torch.device("cuda")):
            assert matmul.fp32_precision == ("ieee" if wanted == "ieee" else "tf32")
        assert matmul.fp32_precision == before and float32.products() == want
