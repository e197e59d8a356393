"""Sums of a few elements, compiled: against the float64 oracle, and to the bit on any machine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import DTYPES, LAYOUTS, check_threads_and_instructions, compiled, matrix, poisoned
from torch import Tensor

from ligo_fast import ops, reference
from ligo_fast.compute import sums
from ligo_fast.compute.sums import Lists, Sum, Table, adjoint, forward, pull_stack, why_not
from ligo_fast.maps import Dense, Identity, Map, Selection

KINDS = ["identity", "random", "random scaled", "tile", "prefix scaled"]


def selection(kind: str, old: int, new: int) -> Map:
    if kind == "identity":
        return Identity(old)
    index = torch.arange(new) % old
    if kind.startswith("random"):
        index = torch.randint(old, (new,))
    if not kind.endswith("scaled"):
        return Selection(index, old)
    scale = torch.randn(new)
    scale[::5] = 0.0
    return Selection(index, old, scale)


def dense(side: Lists) -> Tensor:
    """The lists as a float64 matrix (size, old)."""
    m = torch.zeros(side.size, side.old, dtype=torch.float64)
    for r, (units, scales) in enumerate(sums._entries(side)):
        for unit, scale in zip(units, scales, strict=True):
            m[r, unit] += scale
    return m


def a_sum(
    rows: Lists, columns: Lists, terms: int, dtypes: tuple[torch.dtype, ...], layouts: tuple[str, ...]
) -> Sum:
    sources = [matrix((rows.old, columns.old), dtypes[0], layouts[0]) for _ in range(terms)]
    weights = [1.0 if n == 1 else float(torch.randn(())) for n in range(terms)]
    return Sum(sources, weights, poisoned((rows.size, columns.size), dtypes[1], layouts[1]), rows, columns)


def random_sums(count: int) -> list[Sum]:
    """Every kind of side, dtype and layout, in one table."""
    items = []
    for n in range(count):
        o1, i1, o2, i2 = 3 + n, 5 + 3 * n, 2 * n + 7, 4 * n + 9
        sides = selection(KINDS[n % 5], o1, o2), selection(KINDS[(n // 5) % 5], i1, i2)
        make = adjoint if n % 2 else forward
        dtypes = DTYPES[n % 3], DTYPES[(n // 3) % 3]
        items.append(
            a_sum(make(sides[0]), make(sides[1]), n % 4, dtypes, (LAYOUTS[n % 5], LAYOUTS[(n // 2) % 5]))
        )
    return items


def expected(item: Sum, dtype: torch.dtype) -> Tensor:
    total = torch.zeros(item.rows.old, item.columns.old, dtype=dtype)
    for w, source in zip(item.weights, item.sources, strict=True):
        total += torch.tensor(w, dtype=torch.float32).to(dtype) * source.to(dtype)
    return dense(item.rows).to(dtype) @ total @ dense(item.columns).to(dtype).t()


@compiled
@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    st.tuples(*[st.sampled_from([1, 2, 3, 8, 17, 64, 97])] * 4),
    st.tuples(*[st.sampled_from(DTYPES)] * 2),
    st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
    st.tuples(*[st.sampled_from(KINDS)] * 2),
    st.tuples(st.booleans(), st.booleans()),
    st.integers(0, 4),
)
def test_every_cast_stride_and_list(
    sizes: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    layouts: tuple[str, ...],
    kinds: tuple[str, ...],
    adjoints: tuple[bool, ...],
    terms: int,
) -> None:
    """As close to float64 as twice the error of the same sums as float32 products in torch."""
    torch.manual_seed(0)
    o1, o2, i1, i2 = sizes
    maps = selection(kinds[0], o1, o2), selection(kinds[1], i1, i2)
    rows, columns = (adjoint(m) if back else forward(m) for m, back in zip(maps, adjoints, strict=True))
    for m, side, back in zip(maps, (rows, columns), adjoints, strict=True):
        assert torch.equal(dense(side), m.dense().t() if back else m.dense())
    item = a_sum(rows, columns, terms, dtypes, layouts)
    Table([item])()
    exact, plain = expected(item, torch.float64), expected(item, torch.float32).to(dtypes[1])
    error, allowed = ((t.double() - exact).norm() for t in (item.out, plain))
    floor = torch.finfo(dtypes[1]).eps / 4 * exact.norm()  # torch may be lucky in a single element
    assert not item.out.isnan().any() and error <= 2 * max(allowed, floor)


@compiled
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_bits_on_any_number_of_threads_and_instructions(threads: int) -> None:
    items = random_sums(40)
    Table(items)()
    want = [item.out.clone() for item in items]
    check_threads_and_instructions(lambda some: Table(some)(), items, want, threads)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kinds", [("random", "tile", "identity"), ("random scaled", "identity", "random")])
def test_the_gradient_of_the_small_weights_goes_through_it(
    kinds: tuple[str, str, str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ops.grow` under fixed selections: the compiled adjoint against float64 and against torch."""
    depth, rows, columns = (
        selection(k, old, new) for k, (old, new) in zip(kinds, ((2, 5), (7, 19), (16, 33)), strict=True)
    )
    stack = torch.randn(2, 7, 16).to(dtype).requires_grad_()
    grad = torch.randn(depth.shape[0], rows.shape[0], columns.shape[0]).to(dtype)
    called = []
    monkeypatch.setattr(ops, "pull_stack", lambda *args: called.append(1) or pull_stack(*args))
    (ours,) = torch.autograd.grad(ops.grow(stack, depth, rows, columns), stack, grad)
    assert called and ours.dtype == dtype
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    (plain,) = torch.autograd.grad(ops.grow(stack, depth, rows, columns), stack, grad)
    assert len(called) == 1
    exact_stack = stack.detach().double().requires_grad_()
    reference.grow(exact_stack, depth.dense(), rows.dense(), columns.dense()).backward(grad.double())
    assert exact_stack.grad is not None
    error, allowed = ((g.double() - exact_stack.grad).norm() for g in (ours, plain))
    assert error <= 3 * allowed + torch.finfo(dtype).tiny


@compiled
def test_learned_scales_and_float64_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "pull_stack", lambda *_: pytest.fail("not for the compiled adjoint"))
    scale = torch.randn(5, requires_grad=True)
    stack = torch.randn(2, 4, 4, requires_grad=True)
    ops.grow(stack, None, Selection(torch.arange(5) % 4, 4, scale), Identity(4)).sum().backward()
    assert scale.grad is not None and stack.grad is not None
    double = stack.detach().double().requires_grad_()
    ops.grow(double, None, Selection(torch.arange(5) % 4, 4), Identity(4)).sum().backward()
    assert double.grad is not None


@compiled
def test_bad_sums_are_refused_before_anything_is_written() -> None:
    side, fine = forward(Identity(4)), torch.zeros(4, 4)
    memory = torch.zeros(12, 8)
    assert why_not([Sum([fine], [1.0], memory[:4, :4], side, side)]) == ""
    bad = {
        "2 weights for 1": Sum([fine], [1.0, 1.0], memory[:4, :4], side, side),
        "different strides": Sum([fine, fine.t()], [1.0, 1.0], memory[:4, :4], side, side),
        "where the indices say": Sum([torch.zeros(4, 5)], [1.0], memory[:4, :4], side, side),
        "float64": Sum([fine.double()], [1.0], memory[:4, :4], side, side),
        "source that overlaps": Sum([memory[2:6, :4]], [1.0], memory[:4, :4], side, side),
        "share memory": Sum([fine], [1.0], torch.zeros(1, 4).expand(4, 4), side, side),
    }
    for message, item in bad.items():
        assert message in why_not([item]), message
        with pytest.raises(ValueError, match=message):
            Table([item])
    assert not memory.any()
    with pytest.raises(ValueError, match="no selection"):
        forward(Dense(torch.ones(2, 2)))
    with pytest.raises(ValueError, match="indices -2"):
        adjoint(Selection(torch.tensor([0, -2]), 3))


@compiled
def test_nothing_to_sum_is_zero() -> None:
    out = torch.full((3, 4), torch.nan)
    Table([Sum([], [], out, forward(Identity(3)), forward(Identity(4)))])()
    assert not out.any()
    Table([])()
