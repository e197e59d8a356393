"""Products of bfloat16 weights with split factors, and growth by them, against float64.

The float32 sums are right up to 2^-16 of the sum of the products' sizes, and what is rounded to bfloat16 up
to half a unit of the last place more.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ligo_fast import reference
from ligo_fast.compute import backend_torch, split
from ligo_fast.compute.blend import Workspace
from ligo_fast.maps import Dense, Identity, Kron, Map, PrefixDiagonal, Selection
from ligo_fast.native import cpu

units = pytest.mark.skipif(bool(split.why_not()), reason=split.why_not())
BF16, F32 = torch.bfloat16, torch.float32
SPLIT = 2.0**-16  # of a product's size: 2^-18 for the factor, and the rounding of float32 sums

# rows, depth and new units: one, odd, prime, of a tile, of a block and one beside it, several chunks deep
SHAPES = [(1, 1, 1), (3, 5, 2), (16, 32, 16), (17, 33, 31), (97, 61, 13), (257, 1025, 33), (70, 2081, 300)]
SHAPES += [(32, 32, 257), (600, 40, 64)]


def random(*shape: int, dtype: torch.dtype = BF16, how: str = "plain") -> Tensor:
    """Normal numbers in one of several layouts."""
    if how == "strided":
        return torch.randn(shape[0], shape[1] + 3).to(dtype)[:, : shape[1]]
    if how == "unaligned":
        return torch.randn(shape[0] * shape[1] + 1).to(dtype)[1:].view(shape)
    return torch.randn(shape).to(dtype)


def poisoned(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """NaN everywhere, with room beside each row that must stay so."""
    return torch.full((rows, columns + 5), torch.nan, dtype=dtype)[:, :columns]


def untouched(out: Tensor) -> bool:
    beside = out.as_strided((out.shape[0], 5), out.stride(), out.storage_offset() + out.shape[1])
    return bool(beside.isnan().all())


def check(got: Tensor, exact: Tensor, size: Tensor) -> None:
    """Every value against float64; `size`: the same with absolute values."""
    allowed = SPLIT * size
    if got.dtype == BF16:
        allowed = allowed + exact.abs() * 2.0**-8 + 2.0**-133  # half a unit of the last place
    assert (got.double() - exact).abs().le(allowed).all()


@units
@pytest.mark.parametrize("how", ["plain", "strided", "unaligned"])
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_left_product(shape: tuple[int, int, int], dtype: torch.dtype, how: str) -> None:
    m, k, n = shape
    x, c = random(k, m, dtype=dtype, how=how), torch.randn(n, k)
    out = poisoned(n, m, F32)
    split.left_product(out, split.pack(c, left=True), x)
    check(out, c.double() @ x.double(), c.abs().double() @ x.abs().double())
    assert untouched(out)


@units
@pytest.mark.parametrize("how", ["plain", "strided", "unaligned"])
@pytest.mark.parametrize("out_dtype", [BF16, F32])
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_right_product(
    shape: tuple[int, int, int], dtype: torch.dtype, out_dtype: torch.dtype, how: str
) -> None:
    m, k, n = shape
    x, c = random(m, k, dtype=dtype, how=how), torch.randn(n, k)
    packed, rows, columns = split.pack(c, left=False), torch.rand(m) + 0.5, torch.rand(k) + 0.5
    for kept, r, d in ((True, rows, columns), (True, None, columns), (True, rows, None), (False, None, None)):
        v = torch.cat([torch.eye(k) if d is None else d.diag(), c]) if kept else c
        v, scale = v.double(), torch.ones(m, 1) if r is None else r[:, None]
        out = poisoned(m, v.shape[0], out_dtype)
        split.right_product(out, x, packed, kept, r, d)
        check(out, scale * (x.double() @ v.t()), scale * (x.abs().double() @ v.abs().t()))
        assert untouched(out)


@units
def test_products_without_new_units() -> None:
    x, scale = random(9, 33), torch.rand(33)
    out = poisoned(9, 33, BF16)
    split.right_product(out, x, None, True, None, scale)
    assert torch.equal(out, (x.float() * scale).to(BF16))
    split.left_product(torch.empty(0, 33), split.pack(torch.empty(0, 9), left=True), x)
    split.left_product(torch.empty(4, 0), split.pack(torch.randn(4, 9), left=True), x[:, :0])


@units
def test_kept_units_are_copied_bit_by_bit() -> None:
    x = random(40, 50)
    x[0, :4] = torch.tensor([torch.inf, -torch.inf, -0.0, 1e-40])
    out = poisoned(40, 50, BF16)
    split.right_product(out, x, None)
    assert torch.equal(out.view(torch.int16), x.view(torch.int16))


@units
def test_some_rows_of_a_factor() -> None:
    c, x = torch.randn(100, 45), random(45, 70)
    packed, whole, part = split.pack(c, left=True), torch.empty(100, 70), torch.empty(36, 70)
    split.left_product(whole, packed, x)
    split.left_product(part, packed, x, start=64)
    assert torch.equal(part, whole[64:])


@units
def test_bits_do_not_depend_on_threads() -> None:
    c, x = torch.randn(65, 2100), random(2100, 700)
    outs, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outs.append(torch.empty(65, 700))
            split.left_product(outs[-1], split.pack(c, left=True), x)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@units
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 200), st.integers(1, 90), st.integers(0, 2**31))
def test_any_shape(m: int, k: int, n: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, c = random(m, k), torch.randn(n, k) * torch.logspace(-6, 6, n)[:, None]
    out, down = poisoned(m, n, F32), poisoned(n, m, F32)
    split.right_product(out, x, split.pack(c, left=False), kept=False)
    split.left_product(down, split.pack(c, left=True), x.t().contiguous())
    check(out, x.double() @ c.double().t(), x.abs().double() @ c.abs().double().t())
    check(down.t(), x.double() @ c.double().t(), x.abs().double() @ c.abs().double().t())


@units
def test_wrong_arguments() -> None:
    c, x = torch.randn(40, 50), random(30, 50)
    left, right = split.pack(c, left=True), split.pack(c, left=False)
    for wrong in (
        lambda: split.right_product(torch.empty(30, 89), x, right),
        lambda: split.right_product(torch.empty(29, 90), x, right),
        lambda: split.right_product(torch.empty(30, 90), x, None),
        lambda: split.right_product(torch.empty(30, 90), x, left),
        lambda: split.right_product(torch.empty(30, 90, dtype=torch.float16), x, right),
        lambda: split.right_product(torch.empty(30, 90), x, right, rows=torch.ones(29)),
        lambda: split.right_product(torch.empty(30, 90), x, right, columns=torch.ones(50).double()),
        lambda: split.right_product(torch.empty(90, 30).t(), x, right),
        lambda: split.left_product(torch.empty(40, 50), left, x),  # x has 30 rows, not 50
        lambda: split.left_product(torch.empty(40, 30), left, x.t()),
        lambda: split.left_product(torch.empty(40, 7), left, random(50, 7), start=32),
        lambda: split.left_product(torch.empty(8, 7), left, random(50, 7), start=8),
        lambda: split.left_product(torch.empty(40, 7), right, random(50, 7)),
    ):
        with pytest.raises(ValueError):
            wrong()


def prefix(old: int, new: int, diag: bool = True) -> PrefixDiagonal:
    return PrefixDiagonal(torch.randn(new, old) / old**0.5, torch.rand(old) + 0.5 if diag else None)


MAPS: dict[str, tuple[Map, Map]] = {
    "both": (prefix(70, 11), prefix(50, 33)),
    "no diagonals": (prefix(70, 35, False), prefix(50, 33, False)),
    "columns": (Identity(70), prefix(50, 33)),
    "rows": (prefix(70, 11), Identity(50)),
    "taken rows": (Selection(torch.tensor([5, 3, 3, 69, 0]), 70, torch.rand(5)), prefix(50, 33)),
    "heads": (Kron(prefix(5, 2), Identity(14)), prefix(50, 33)),
    "heads in groups": (Kron(Kron(prefix(5, 1), Identity(2)), Identity(7)), prefix(50, 33)),
    "columns of heads": (prefix(70, 11), Kron(Kron(prefix(5, 2), Identity(2)), Identity(5))),
    "any units": (Dense(torch.randn(81, 70) / 8), Dense(torch.randn(60, 50) / 7)),
}


@units
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", MAPS)
def test_growth(name: str, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As accurate as float32 products are, by norm, and every value within its bound; in parts, too."""
    u, v = MAPS[name]
    x = random(u.shape[1], v.shape[1])
    depth = None if layers == 1 else Selection(torch.zeros(layers).long(), 1)
    exact, size = (
        reference.grow(t[None], None, a, b)[0]
        for t, a, b in ((x, u.dense(), v.dense()), (x.abs(), u.dense().abs(), v.dense().abs()))
    )
    monkeypatch.setattr(split, "NEW_BYTES", 4 * 32 * x.shape[1])
    called = []
    monkeypatch.setattr(split, "right_product", lambda *a, real=split.right_product: called.append(real(*a)))
    outs = [torch.full(exact.shape, torch.nan, dtype=BF16) for _ in range(layers)]
    backend_torch.grow_(outs, [x], depth, u, v)
    assert called
    parts = [torch.full(exact.shape, torch.nan, dtype=BF16) for _ in range(layers)]
    for block in backend_torch.grow_blocks([x], depth, u, v, out_dtype=BF16):
        for a in range(0, block.extent, 9):
            some = slice(a, min(a + 9, block.extent))
            block.write([p[block.rows][some] for p in parts], some)
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    del called[:]
    plain = torch.full(exact.shape, torch.nan, dtype=BF16)
    backend_torch.grow_([plain], [x], None, u, v)
    assert not called
    for out, part in zip(outs, parts, strict=True):
        assert torch.equal(out, part)
        check(out, exact, 2 * size)
        assert (out - exact).norm() <= 1.01 * (plain - exact).norm()


@units
def test_what_is_left_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    u, v = MAPS["both"]
    x = random(70, 50)

    def taken(x: Tensor, u: Map, v: Map, out: torch.dtype = BF16, depth: Map | None = None) -> bool:
        return split.grow_rows([x], depth, [u], [v], F32, out, Workspace()) is not None

    assert taken(x, u, v)
    assert not taken(x.float(), u, v)
    assert not taken(x, u, v, F32)
    assert not taken(random(50, 70).t(), u, v)
    assert not taken(x, Identity(70), Identity(50))
    assert not taken(x, u, v, depth=Selection(torch.zeros(2).long(), 1, torch.ones(2)))
    assert not taken(x, u, Selection(torch.tensor([0, 0]), 50))
    monkeypatch.setattr(cpu, "extension", None)
    assert not taken(x, u, v)


@units
def test_factors_are_packed_again_when_they_change() -> None:
    u, v = prefix(70, 11), prefix(50, 33)
    x = random(70, 50)
    outs = [torch.empty(81, 83, dtype=BF16) for _ in range(2)]
    for out in outs:
        backend_torch.grow_([out], [x], None, u, v)
        v.C.data.mul_(2)
    assert torch.equal(outs[1][:70, 50:], 2 * outs[0][:70, 50:])
