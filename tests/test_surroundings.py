"""What a caller has set for its own models (a default dtype, autocast, ...) changes no bit of a growth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

import ligo_fast as lf
from ligo_fast import ops
from ligo_fast.maps import Identity, PrefixDiagonal, Selection

Inside = Callable[[], Any]
GROWTHS: list[dict[str, Any]] = [
    {"method": "ligo"},
    {"method": "ligo", "tie": True, "form": "dense"},
    {"method": "ligo", "per_layer": "target"},
    {"method": "net2net+stack", "noise": 0.5},
    {"method": "pad+zero"},
    {"method": "aki+interpolate"},
    {"method": "random+identity"},
]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Inside] = {
    "float64": partial(default_dtype, torch.float64),
    "bfloat16": partial(default_dtype, torch.bfloat16),
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "meta": partial(torch.device, "meta"),
    "inference": torch.inference_mode,
}


def pair(name: str = "gpt2-lm") -> tuple[nn.Module, nn.Module]:
    """Two models, the large one with gradients."""
    small, large = models.build(name), models.build_wider(name, 3)
    rng = torch.Generator().manual_seed(3)
    for p in large.parameters():
        p.grad = torch.rand(p.shape, generator=rng)
    return small, large


def grown(inside: Inside, growth: dict[str, Any]) -> dict[str, Tensor]:
    """All that an operator computes, each call in a context of its own."""
    small, large = pair()
    with inside():
        op = lf.GrowthOperator(small, large, **growth)
    with inside():
        op.apply_()
    found = {n: p.detach().clone() for n, p in large.named_parameters()}
    if op.is_learned:
        with inside():
            op.pullback()
        found |= {f"d {n}": p.grad.clone() for n, p in op.named_parameters() if p.grad is not None}
    if "random" not in growth["method"]:
        with inside():
            found |= {f"op() {n}": p.detach() for n, p in op().items()}
    op.apply_()
    return found | {f"again {n}": p.detach().clone() for n, p in large.named_parameters()}


def same(found: dict[str, Tensor], want: dict[str, Tensor]) -> list[str]:
    """The names of what differs in dtype or any bit."""
    assert found.keys() == want.keys()
    return [n for n, w in want.items() if found[n].dtype != w.dtype or not torch.equal(found[n], w)]


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("growth", GROWTHS, ids=lambda g: " ".join(map(str, g.values())))
def test_no_bit_of_a_growth_changes(
    growth: dict[str, Any], surroundings: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGO_FAST_BACKEND", backend)
    want = grown(contextlib.nullcontext, growth)
    assert same(grown(SURROUNDINGS[surroundings], growth), want) == []


def test_no_bit_of_what_the_kernels_do_changes(on_kernels: None, device: torch.device) -> None:
    def launched(inside: Inside, before: bool = False) -> dict[str, Tensor]:
        """In the second call, where there is one before: it asks less."""
        small, large = (
            models.build("gpt2-lm", n, n_layer=1, n_embd=4 + 4 * n, n_head=1 + n, n_inner=6 + n).to(device)
            for n in range(2)
        )
        for p in large.parameters():
            p.grad = torch.ones_like(p)
        with contextlib.nullcontext() if before else inside():
            op = lf.GrowthOperator(small, large)
            op.apply_()
            op.pullback()
        if before:
            for p in op.parameters():
                p.grad = None
            with inside():
                op.apply_()
                op.pullback()
            assert not any(p.grad is None or p.grad.is_inference() for p in op.parameters())
        return {n: p.detach() for n, p in large.named_parameters()} | {
            f"d {n}": p.grad for n, p in op.named_parameters() if p.grad is not None
        }

    want = launched(contextlib.nullcontext)
    for name in ("float64", "bfloat16"):  # the interpreter is slow
        assert same(launched(SURROUNDINGS[name]), want) == [], name
    for name in ("bfloat16", "inference"):
        assert same(launched(SURROUNDINGS[name], before=True), want) == [], name


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_no_bit_of_grown_moments_changes(surroundings: str) -> None:
    def moments(inside: Inside) -> dict[str, Tensor]:
        small, large = models.build("gpt2-lm"), models.build_wider("gpt2-lm", 3)
        old, new = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in (small, large))
        models.train(small, old, 1)
        op = lf.GrowthOperator(small, large, method="aki+stack")
        with inside():
            lf.grow_optimizer(op, old, new)
        new.param_groups[0]["lr"] = 0.2
        models.train(large, new, 1)  # it is ordinary state
        return {
            f"{n} {k}": new.state[p][k].float() for n, p in large.named_parameters() for k in new.state[p]
        }

    assert same(moments(SURROUNDINGS[surroundings]), moments(contextlib.nullcontext)) == []


MAPS = {
    "selected": (Selection(torch.arange(3) % 2, 2), Selection(torch.arange(6).flip(0), 6)),
    "mixed": (torch.randn(3, 2), PrefixDiagonal(torch.randn(4, 6), torch.rand(6))),
}


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("surroundings", sorted(SURROUNDINGS.keys() - {"inference"}))
def test_no_bit_of_the_op_changes(surroundings: str, maps: str) -> None:
    depth, u = MAPS[maps]
    stack, g = torch.randn(2, 6, 5), torch.randn(3, u.shape[0], 5)

    def by_op(inside: Inside) -> dict[str, Tensor]:
        w, out = stack.clone().requires_grad_(), torch.empty_like(g)
        with inside():
            y = ops.grow(w, depth, u, Identity(5))
            y.backward(g)
            ops.grow(stack, depth, u, Identity(5), out=out)
        assert w.grad is not None
        return {"y": y.detach(), "dw": w.grad, "out": out}

    assert same(by_op(SURROUNDINGS[surroundings]), by_op(contextlib.nullcontext)) == []


def test_a_target_that_is_made_here_is_not_on_the_default_device() -> None:
    small = models.build("gpt2-lm")

    def made(inside: Inside) -> dict[str, Tensor]:
        with inside():
            large = lf.grow(small, width=16, depth=3, method="pad+identity")
        return {n: p.detach() for n, p in large.named_parameters()}

    assert same(made(SURROUNDINGS["meta"]), made(contextlib.nullcontext)) == []


@pytest.mark.parametrize("method", ["random+stack", "tile+zero", "pad+identity"])
@pytest.mark.parametrize("kind", ["made here", "on meta", "half precision"])
def test_a_model_that_is_grown_in_inference_mode_can_be_trained(kind: str, method: str) -> None:
    dtype = torch.bfloat16 if kind == "half precision" else torch.float32
    small, batch = models.build("llama-lm", dtype=dtype), models.make_batch("llama-lm")
    sizes: dict[str, Any] = {"width": 32, "depth": 3}
    want = lf.grow(small, **sizes, method=method)
    if kind == "on meta":
        sizes = {"target": models.on_meta(want)}
        want = lf.grow(small, target=models.on_meta(want), method=method)
    with torch.inference_mode():
        large = lf.grow(small, **sizes, method=method)
    assert not any(t.is_inference() for t in (*large.parameters(), *large.buffers()))
    models.loss_of(large, batch).backward()
    assert all(p.grad is not None for p in large.parameters())
    found, expected = (dict(m.state_dict()) for m in (large, want))
    assert same(found, expected) == []


def test_gradients_that_are_consumed_inside_autocast() -> None:
    def learned(inside: Inside) -> dict[str, Tensor]:
        small, large = pair()
        opt = lf.GrowthOptimizer(lf.GrowthOperator(small, large), release_grads=True, lr=0.1)
        loss = sum((p * p.grad).sum() for p in large.parameters())  # no products of its own
        large.zero_grad()
        with inside():
            loss.backward()
            opt.step()
        return {n: p.detach() for n, p in large.named_parameters()}

    assert same(learned(SURROUNDINGS["autocast"]), learned(contextlib.nullcontext)) == []


@pytest.mark.parametrize("maps", MAPS)
def test_no_bit_of_the_compiled_op_changes_under_autocast(maps: str) -> None:
    depth, u = MAPS[maps]
    stack = torch.randn(2, 6, 5)
    compiled = torch.compile(lambda w: ops.grow(w, depth, u, Identity(5)), backend="eager", fullgraph=True)
    want = compiled(stack)
    with SURROUNDINGS["autocast"]():
        assert torch.equal(compiled(stack), want)
