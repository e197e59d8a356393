"""The pull-back that reads the grown weights: the right gradient, and never from stale weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import build
from torch import Tensor, nn

import ligo_fast as lf
from ligo_fast.compute import backend_torch
from ligo_fast.compute.blend import CONDITION, left_inverse
from ligo_fast.maps import Dense, Identity, Map, PrefixDiagonal, Selection
from ligo_fast.native import cpu
from ligo_fast.unchanged import Snapshot

NAME = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture(params=["compiled", "torch"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the extension."""
    if request.param == "torch":
        monkeypatch.setattr(cpu, "extension", None)
    elif cpu.extension is None:
        pytest.skip(f"the extension is {cpu.state}")


def operator(dtype: torch.dtype = torch.float64, **options: Any) -> lf.GrowthOperator:
    small = build("gpt2-lm", dtype=dtype)
    large = build("gpt2-lm", seed=1, dtype=dtype, n_embd=16, n_head=4, n_inner=28, n_layer=5)
    op = lf.GrowthOperator(small, large, **options)
    torch.manual_seed(4)
    with torch.no_grad():
        for p in op.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    for p in large.parameters():
        p.grad = torch.randn_like(p)
    return op


def pulled(op: lf.GrowthOperator) -> dict[str, Tensor]:
    """The factors' gradients from `pullback`."""
    op.zero_grad()
    op.pullback()
    return {n: p.grad.clone() for n, p in op.named_parameters() if p.grad is not None}


def by_autograd(op: lf.GrowthOperator) -> dict[str, Tensor]:
    """The same through the functional form, which never looks at the large weights."""
    names = [n for n, _ in op.named_parameters()]
    weights = op()
    loss = sum((p.grad * weights[n]).sum() for n, p in op.large.named_parameters() if p.grad is not None)
    return dict(zip(names, torch.autograd.grad(loss, list(op.parameters())), strict=True))


def agree(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    assert got.keys() == want.keys()
    return all(torch.allclose(got[n], want[n], rtol=1e-9, atol=1e-11) for n in got)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every piece of every pull-back: whether it was given grown layers."""
    seen: list[bool] = []
    pullback_ = backend_torch.pullback_

    def recording(*args: Any, **kwargs: Any) -> None:
        if "grown" in kwargs:  # the operator's calls
            seen.append(kwargs["grown"] is not None)
        pullback_(*args, **kwargs)

    monkeypatch.setattr(backend_torch, "pullback_", recording)
    return seen


@pytest.mark.parametrize("form", ["prefix", "dense"])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("per_layer", ["none", "source", "target"])
def test_both_ways_are_the_gradient(
    per_layer: str, tie: bool, form: str, either: None, reads: list[bool]
) -> None:
    op = operator(per_layer=per_layer, tie=tie, form=form)
    again = pulled(op)
    assert not any(reads)
    op.apply_()
    reads.clear()
    read = pulled(op)
    assert all(reads)
    want = by_autograd(op)
    assert agree(read, want) and agree(again, want)


def test_a_missing_gradient_is_zero(either: None) -> None:
    op = operator()
    op.apply_()
    for name in (NAME, "transformer.wte.weight", "transformer.h.0.ln_1.bias"):
        op.large.get_parameter(name).grad = None
    assert agree(pulled(op), by_autograd(op))


def scaled(op: lf.GrowthOperator) -> None:
    with torch.no_grad():
        op.large.get_parameter(NAME).mul_(2)


def another_parameter(op: lf.GrowthOperator) -> None:
    old = op.large.get_parameter(NAME)
    new = nn.Parameter(torch.randn_like(old))
    new.grad = old.grad
    op.large.transformer.h[1].mlp.c_fc.weight = new


def other_memory(op: lf.GrowthOperator) -> None:
    p = op.large.get_parameter(NAME)
    p.data = torch.randn_like(p)


def loaded(op: lf.GrowthOperator) -> None:
    op.large.load_state_dict({n: torch.randn_like(t) for n, t in op.large.state_dict().items()})


def width_factor(op: lf.GrowthOperator) -> None:
    with torch.no_grad():
        next(p for n, p in op.named_parameters() if n.startswith("width/")).add_(0.5)


def depth_factor(op: lf.GrowthOperator) -> None:
    with torch.no_grad():
        op.get_parameter("depth/h/*/mlp/c_fc/weight/M").mul_(1.5)


def small_weight(op: lf.GrowthOperator) -> None:
    with torch.no_grad():
        op.small.get_parameter(NAME).add_(1)


def fused_step(op: lf.GrowthOperator) -> None:
    """Its kernel counts no version up."""
    torch.optim.AdamW(op.large.parameters(), lr=0.1, fused=True).step()


def fused_step_of_factors(op: lf.GrowthOperator) -> None:
    for p in op.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(op.parameters(), lr=0.1, fused=True).step()


@pytest.mark.parametrize(
    "change",
    [
        scaled,
        another_parameter,
        other_memory,
        loaded,
        width_factor,
        depth_factor,
        small_weight,
        fused_step,
        fused_step_of_factors,
    ],
    ids=lambda f: f.__name__,
)
def test_what_changed_since_is_computed_again(
    change: Callable[[lf.GrowthOperator], None], either: None, reads: list[bool]
) -> None:
    op = operator()
    op.apply_()
    change(op)
    assert agree(pulled(op), by_autograd(op))
    assert not any(reads)
    op.apply_()
    reads.clear()
    assert agree(pulled(op), by_autograd(op))
    assert all(reads)


@pytest.mark.parametrize(
    "change", [scaled, other_memory, width_factor, depth_factor, small_weight], ids=lambda f: f.__name__
)
def test_the_check_is_needed(
    change: Callable[[lf.GrowthOperator], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it these changes give wrong gradients: the tests above can fail."""
    op = operator()
    op.apply_()
    change(op)
    monkeypatch.setattr(Snapshot, "holds", lambda *_: True)
    assert not agree(pulled(op), by_autograd(op))


def test_parts_of_one_buffer_are_never_read(reads: list[bool]) -> None:
    """What is written to the buffer counts on none of them."""
    op = operator()
    parameters = list(op.large.parameters())
    buffer = torch.cat([p.detach().flatten() for p in parameters])
    for p, part in zip(parameters, buffer.split([p.numel() for p in parameters]), strict=True):
        p.data = part.view_as(p)
    op.apply_()
    buffer.mul_(2)
    assert agree(pulled(op), by_autograd(op))
    assert not any(reads)


def test_a_step_of_learning_reads_what_the_last_one_wrote(reads: list[bool]) -> None:
    op = operator()
    opt = lf.GrowthOptimizer(op, torch.optim.AdamW, fused=True)
    for _ in range(2):
        opt.step()
        assert reads and all(reads)


@pytest.mark.parametrize("rows", ["equal", "one zero source", "nearly dependent"])
def test_a_depth_that_loses_a_source_layer(rows: str, either: None) -> None:
    op = operator()
    m = op.get_parameter("depth/h/*/mlp/c_fc/weight/M")
    with torch.no_grad():
        if rows == "equal":
            m.copy_(m[:1].expand_as(m).clone())
        elif rows == "one zero source":
            m[:, 1] = 0
        else:
            m[:, 1] = m[:, 0] * (1 + 1e-6 * torch.randn(len(m)))
    assert left_inverse(Dense(m)) is None
    op.apply_()
    assert agree(pulled(op), by_autograd(op))


def test_left_inverse() -> None:
    m = torch.randn(7, 3, dtype=torch.float64)
    found = left_inverse(Dense(m), 1e6)
    assert found is not None
    torch.testing.assert_close(found @ m, torch.eye(3, dtype=torch.float64))
    assert left_inverse(Dense(m.t()), 1e6) is None  # fewer large layers than small ones
    assert left_inverse(Dense(torch.zeros(4, 2))) is None
    assert left_inverse(Dense(torch.full((4, 2), torch.nan))) is None
    assert left_inverse(Selection(torch.arange(3), 3)) is None and left_inverse(None) is None
    limit = torch.diag(torch.tensor([1.0, 1 / CONDITION]))
    assert (
        left_inverse(Dense(limit)) is not None
        and left_inverse(Dense(limit * torch.tensor([1.01, 1]))) is None
    )


@pytest.mark.parametrize("scale", [1e-1, 1e-6, 1e-9])
def test_layers_whose_scales_differ(scale: float, either: None) -> None:
    """A V each: what is read of the layer of small scales must not have the others' rounding errors."""
    generator = torch.Generator().manual_seed(0)
    sources = [torch.randn(24, 20, generator=generator) for _ in range(2)]
    depth = Dense(torch.tensor([[1.0, 0.3], [0.2, 1.0], [0.5, -0.4]]))
    rows = PrefixDiagonal(torch.randn(6, 24, generator=generator))
    corners = [torch.randn(4, 20, generator=generator) for _ in range(2)]
    diagonals = [torch.ones(20), torch.full((20,), scale)]
    grads = [torch.randn(30, 24, generator=generator) for _ in range(3)]
    found = []
    for dtype, reads in ((torch.float64, False), (torch.float32, True)):
        xs, gs = ([t.to(dtype) for t in ts] for ts in (sources, grads))
        u = rows.replace({k: t.to(dtype) for k, t in rows.factors().items()})
        d = Dense(depth.M.to(dtype))
        cols = [PrefixDiagonal(c.to(dtype), s.to(dtype)) for c, s in zip(corners, diagonals, strict=True)]
        outs = [torch.empty(30, 24, dtype=dtype) for _ in grads]
        backend_torch.grow_(outs, xs, d, u, cols, "width_first", dtype)
        d_cols = [m.replace({k: torch.zeros_like(t) for k, t in m.factors().items()}) for m in cols]
        backend_torch.pullback_(
            gs, xs, d, u, cols, None, None, d_cols, "width_first", dtype, grown=outs if reads else None
        )
        found.append([m.factors()["C"].double() for m in d_cols])
    for exact, got in zip(*found, strict=True):
        assert (got - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_weights_are_not_read(dtype: torch.dtype, either: None, reads: list[bool]) -> None:
    op = operator(dtype)
    before = pulled(op)
    op.apply_()
    reads.clear()
    after = pulled(op)
    assert not any(reads)
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_copies_and_inference_mode_know_nothing(reads: list[bool]) -> None:
    op = operator()
    op.apply_()
    twin = copy.deepcopy(op)
    for p, q in zip(op.large.parameters(), twin.large.parameters(), strict=True):
        q.grad = p.grad
    assert agree(pulled(twin), pulled(op))
    half = len(reads) // 2
    assert not any(reads[:half]) and all(reads[half:])
    with torch.inference_mode():
        t = torch.zeros(2)
    assert not Snapshot([t]).holds([t])


def test_snapshots() -> None:
    a, b = torch.zeros(3), torch.zeros(3)
    seen = Snapshot([a, b])
    assert seen.holds([a, b]) and not seen.holds([b, a]) and not seen.holds([a])
    a.view(3)[0] = 1  # through a view
    assert not seen.holds([a, b])
    assert not Snapshot().holds([]) and not Snapshot().includes([])
    assert seen.includes([b]) and not seen.includes([b, a]) and not seen.includes([torch.zeros(3)])
    seen = Snapshot([b])
    old, b.data = b.data, torch.zeros(3)
    assert not seen.holds([b])
    b.data = old
    assert seen.holds([b])


def orthogonal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64))[0]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("weak", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
def test_error_at_the_largest_condition(weak: int, flip: bool, scaled: bool, either: None) -> None:
    """In float32 at most 3 times torch's own error, where D is as bad as is read; `weak` directions of it.

    `scaled`: V multiplies the old units by scales of very different sizes.
    """
    torch.manual_seed(0)
    s = torch.ones(6, dtype=torch.float64)
    s[-weak:] = 1.001 / CONDITION
    (o2, o1), (i2, i1) = ((96, 64), (384, 256)) if flip else ((384, 256), (96, 64))
    factors = [
        (orthogonal(12, 6) * s) @ orthogonal(6, 6).t(),
        torch.randn(o2 - o1, o1) / o1**0.5,
        torch.randn(i2 - i1, i1) / i1**0.5,
    ]
    d, u, v = (t.float() for t in factors)
    stack, grads = torch.randn(6, o1, i1), torch.randn(12, o2, i2)
    scales = [torch.ones(o1), torch.logspace(-6, 3, i1) if scaled else torch.ones(i1)]
    maps: list[Map] = [Dense(d), PrefixDiagonal(u), PrefixDiagonal(v, scales[1] if scaled else None)]

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).clone().requires_grad_() for t in (d, u, v)]
        left, right = (torch.cat([s.to(dtype).diag(), c]) for s, c in zip(scales, leaves[1:], strict=True))
        y = left @ torch.einsum("lj,joi->loi", leaves[0], stack.to(dtype)) @ right.t()
        return list(torch.autograd.grad((y * grads.to(dtype)).sum(), leaves))

    outs = [torch.empty(o2, i2) for _ in range(12)]
    backend_torch.grow_(outs, list(stack), *maps)
    zeros = [torch.zeros_like(t) for t in (d, u, v)]
    into = [m.replace({next(iter(m.factors())): z}) for m, z in zip(maps, zeros, strict=True)]
    assert left_inverse(maps[0]) is not None
    backend_torch.pullback_(list(grads), list(stack), *maps, *into, grown=outs)
    for got, plain, exact in zip(zeros, gradients(torch.float32), gradients(torch.float64), strict=True):
        assert (got - exact).norm() <= 3 * (plain - exact).norm()


def test_one_layer_alone(either: None) -> None:
    """Without depth the grown layer is Z itself; V keeps the old units, scales them, drops one, or mixes."""
    c, dropped = torch.randn(3, 5).double(), torch.randn(5).double()
    scale = dropped.clone()
    dropped[2] = 0  # its column of P cannot be read
    scaled = [PrefixDiagonal(c, s) for s in (scale, dropped)]
    for v in (PrefixDiagonal(c), *scaled, Dense(torch.randn(8, 5).double()), Identity(5)):
        u = PrefixDiagonal(torch.randn(4, 6).double())
        source, out = torch.randn(6, 5).double(), torch.empty(10, v.shape[0]).double()
        backend_torch.grow_([out], [source], None, u, v, dtype=torch.float64)
        grad, results = torch.randn_like(out), []
        for grown in (None, [out]):
            du, dv = (m.replace({k: torch.zeros_like(t) for k, t in m.factors().items()}) for m in (u, v))
            backend_torch.pullback_(
                [grad], [source], None, u, v, None, du, dv, dtype=torch.float64, grown=grown
            )
            results.append([*du.factors().values(), *dv.factors().values()])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
