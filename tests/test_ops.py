"""ops.grow, and grow_ and pullback_ under it, against the float64 reference and its autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ligo_fast import GrowthError, ops, reference
from ligo_fast.compute import backend_torch, blend, products
from ligo_fast.maps import Dense, Identity, Kron, Map, PrefixDiagonal, Selection
from ligo_fast.native import cpu

F64 = torch.float64


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def some_units(n2: int, n1: int) -> Tensor:
    """The old units, then random ones; fewer than the old when the axis shrinks."""
    return torch.cat([torch.arange(min(n1, n2)), torch.randint(n1, (max(n2 - n1, 0),))])


def heads(n2: int, n1: int) -> Map:
    """[I; C] over whole heads, with units inside a head left as they are."""
    inner = next((d for d in (4, 3, 2) if n2 % d == 0 and n1 % d == 0), 1)
    return Kron(PrefixDiagonal(rand((n2 - n1) // inner, n1 // inner)), Identity(inner))


KINDS: dict[str, Callable[[int, int], Map]] = {
    "selection": lambda n2, n1: Selection(some_units(n2, n1), n1),
    "scaled": lambda n2, n1: Selection(some_units(n2, n1), n1, rand(n2) * (torch.arange(n2) % 4 != 3)),
    "dense": lambda n2, n1: Dense(rand(n2, n1)),
    "prefix": lambda n2, n1: PrefixDiagonal(rand(n2 - n1, n1)),
    "diagonal": lambda n2, n1: PrefixDiagonal(rand(n2 - n1, n1), rand(n1)),
    "heads": heads,
    "identity": lambda n2, n1: Identity(n1),
}
DEPTHS: dict[str, Callable[[int, int], Map | Tensor]] = {
    "tensor": lambda l2, l1: rand(l2, l1),
    "dense": lambda l2, l1: Dense(rand(l2, l1)),
    "strided": lambda l2, l1: Dense(rand(l1, 2 * l2)[:, ::2].t()),
    "stack": lambda l2, l1: Selection(torch.arange(l2) % l1, l1),
    "stack with zero layers": lambda l2, l1: Selection(
        torch.arange(l2) % l1, l1, (torch.arange(l2) != l2 - 1).double()
    ),
    "scaled": lambda l2, l1: Selection(torch.arange(l2) % l1, l1, rand(l2)),
}


@dataclass
class Problem:
    """One family to grow: Y[l] = U (sum_j D[l, j] W[j]) V^T; U and V are lists when they differ per layer."""

    stack: Tensor
    depth: Map | None
    rows: Map | list[Map]
    cols: Map | list[Map]
    order: str = "auto"

    def maps(self) -> list[Map]:
        """Each map once, in the order depth, rows, cols."""
        given = [*([self.depth] if self.depth else []), *as_list(self.rows), *as_list(self.cols)]
        return list({id(m): m for m in given}.values())

    def over(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """The same problem over changed tensors; a map that occurs twice still does."""
        new = {id(m): m.replace({k: change(t) for k, t in m.factors().items()}) for m in self.maps()}

        def each(maps: Map | list[Map]) -> Map | list[Map]:
            return new[id(maps)] if isinstance(maps, Map) else [new[id(m)] for m in maps]

        depth = None if self.depth is None else new[id(self.depth)]
        return Problem(change(self.stack), depth, each(self.rows), each(self.cols), self.order)

    def leaves(self, dtype: torch.dtype = F64) -> Problem:
        return self.over(lambda t: t.detach().to(dtype, copy=True).requires_grad_())

    def tensors(self) -> list[Tensor]:
        return [self.stack, *(t for m in self.maps() for t in m.factors().values())]

    def grown(self) -> Tensor:
        return ops.grow(self.stack, self.depth, self.rows, self.cols, order=self.order)

    def grow_(self, outs: Sequence[Tensor], sources: Sequence[Tensor] | None = None) -> None:
        sources = list(self.stack) if sources is None else sources
        dtype = torch.float64 if self.dtype() == F64 else torch.float32
        backend_torch.grow_(outs, sources, self.depth, self.rows, self.cols, self.order, dtype)

    def dtype(self) -> torch.dtype:
        return next((t.dtype for t in self.tensors()[1:]), self.stack.dtype)

    def shape(self) -> tuple[int, int, int]:
        layers = len(self.stack) if self.depth is None else self.depth.shape[0]
        return layers, as_list(self.rows)[0].shape[0], as_list(self.cols)[0].shape[0]


def as_list(maps: Map | list[Map]) -> list[Map]:
    return [maps] if isinstance(maps, Map) else maps


def dense(maps: Map | list[Map], dtype: torch.dtype) -> Tensor:
    """The matrix of a map, or of each map, differentiable in the factors."""
    if isinstance(maps, Map):
        return maps.left(torch.eye(maps.shape[1], dtype=dtype))
    return torch.stack([dense(m, dtype) for m in maps])


def is_per_source(p: Problem) -> bool:
    counts = {len(m) for m in (p.rows, p.cols) if not isinstance(m, Map)}
    if not counts or p.depth is None:
        return False
    return p.order == "width_first" or (p.order == "auto" and counts == {p.depth.shape[1]})


def expected(p: Problem) -> Tensor:
    """The reference's answer."""
    grow = reference.grow_per_source if is_per_source(p) else reference.grow
    depth = None if p.depth is None else dense(p.depth, F64)
    return grow(p.stack, depth, dense(p.rows, F64), dense(p.cols, F64))


def plain(p: Problem) -> Tensor:
    """The reference's formula in the problem's own dtype: the error that torch makes."""
    dtype = p.dtype()
    w, u, v = p.stack.to(dtype), dense(p.rows, dtype), dense(p.cols, dtype).transpose(-1, -2)
    if p.depth is None:
        return u @ w @ v
    depth = dense(p.depth, dtype)
    if is_per_source(p):
        return torch.einsum("lj,joi->loi", depth, u @ w @ v)
    return u @ torch.einsum("lj,joi->loi", depth, w) @ v


def gradients(y: Tensor, g: Tensor, p: Problem) -> list[Tensor]:
    """dL/d stack and dL/d factors; zero for what has no part in the result."""
    found = torch.autograd.grad((y * g).sum(), p.tensors(), allow_unused=True)
    return [torch.zeros_like(t) if d is None else d for t, d in zip(p.tensors(), found, strict=True)]


def agrees_with_reference(p: Problem) -> None:
    """The result, and every gradient, in float64."""
    leaf = p.leaves()
    y, want = leaf.grown(), expected(leaf)
    assert y.shape == p.shape()
    torch.testing.assert_close(y, want)
    g = torch.randn_like(want)
    for got, right in zip(gradients(y, g, leaf), gradients(want, g, leaf), strict=True):
        torch.testing.assert_close(got, right)


def problem(
    rows: str = "prefix",
    cols: str = "prefix",
    layers: tuple[int, int] = (3, 2),
    out: tuple[int, int] = (12, 8),
    into: tuple[int, int] = (9, 6),
    depth: str | None = "dense",
    order: str = "auto",
) -> Problem:
    """Sizes are (large, small)."""
    d = None if depth is None else DEPTHS[depth](*layers)
    if isinstance(d, Tensor):
        d = Dense(d)
    return Problem(rand(layers[1], out[1], into[1]), d, KINDS[rows](*out), KINDS[cols](*into), order)


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


@pytest.fixture
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest rows a block can have."""
    monkeypatch.setattr(products, "BLOCK_BYTES", 1)


@pytest.mark.parametrize("order", ["width_first", "depth_first"])
@pytest.mark.parametrize("cols", KINDS)
@pytest.mark.parametrize("rows", KINDS)
def test_every_pair_of_maps(rows: str, cols: str, order: str) -> None:
    agrees_with_reference(problem(rows, cols, order=order))


@pytest.mark.parametrize("order", ["auto", "width_first", "depth_first"])
@pytest.mark.parametrize("layers", [(5, 2), (2, 5), (3, 3), (1, 1), (3, 1), (1, 3)], ids=str)
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth(depth: str, layers: tuple[int, int], order: str) -> None:
    agrees_with_reference(problem("diagonal", "dense", layers, depth=depth, order=order))


@pytest.mark.parametrize("layers", [1, 3])
def test_without_depth_the_layers_stay(layers: int) -> None:
    agrees_with_reference(problem("diagonal", "dense", (layers, layers), depth=None))


def test_depth_may_be_a_tensor() -> None:
    p = problem().leaves()
    assert isinstance(p.depth, Dense)
    y = ops.grow(p.stack, p.depth.M, p.rows, p.cols)
    torch.testing.assert_close(y, expected(p))
    y.sum().backward()
    assert p.depth.M.grad is not None


@pytest.mark.parametrize("depth", [None, "dense", "stack"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors(kind: str, depth: str | None) -> None:
    layers = (2, 2) if depth is None else (3, 2)
    for p in (
        problem(kind, "identity", layers, into=(1, 1), depth=depth),
        problem("identity", kind, layers, out=(1, 1), depth=depth),
    ):
        agrees_with_reference(p)


@pytest.mark.parametrize("kind", ["identity", "selection", "dense", "prefix", "diagonal", "heads"])
def test_an_axis_that_does_not_grow(kind: str) -> None:
    agrees_with_reference(problem(kind, "prefix", out=(8, 8)))
    agrees_with_reference(problem("prefix", kind, into=(6, 6)))


@pytest.mark.parametrize("kind", ["selection", "scaled", "dense"])
def test_an_axis_that_shrinks(kind: str) -> None:
    agrees_with_reference(problem(kind, "prefix", out=(5, 8)))
    agrees_with_reference(problem("prefix", kind, layers=(2, 3), into=(4, 6)))


@pytest.mark.parametrize(
    ("out", "into", "first"),
    [((8, 4), (24, 12), False), ((12, 8), (9, 6), True), ((12, 8), (9, 8), True), ((9, 6), (12, 8), True)],
    ids=["cols before rows", "rows before cols", "a tie", "6% from a tie"],
)
def test_the_cheaper_product_goes_first(out: tuple[int, int], into: tuple[int, int], first: bool) -> None:
    p = problem("prefix", "prefix", out=out, into=into)
    assert backend_torch.rows_first(len(p.stack), p.rows, p.cols) is first
    agrees_with_reference(p)


def with_lists(rows: str, cols: str, per: str, which: str) -> Problem:
    """A problem whose maps differ per source or per target layer, on rows, columns or both."""
    layers = (3, 2)
    n = layers[1] if per == "source" else layers[0]
    p = problem(rows, cols, layers)
    if which in ("rows", "both"):
        p.rows = [KINDS[rows](12, 8) for _ in range(n)]
    if which in ("cols", "both"):
        p.cols = [KINDS[cols](9, 6) for _ in range(n)]
    return p


@pytest.mark.parametrize("which", ["rows", "cols", "both"])
@pytest.mark.parametrize("per", ["source", "target"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "identity"])
def test_maps_per_layer(kind: str, per: str, which: str) -> None:
    agrees_with_reference(with_lists(kind, kind, per, which))


@pytest.mark.parametrize("order", ["width_first", "depth_first"])
def test_maps_per_layer_with_as_many_layers(order: str) -> None:
    p = problem(layers=(3, 3), order=order)
    p.rows = [KINDS["prefix"](12, 8) for _ in range(3)]
    agrees_with_reference(p)


@pytest.mark.parametrize("out", [(200, 8), (200, 5)], ids=["rows first", "cols first"])
@pytest.mark.parametrize("per", ["source", "target"])
def test_a_map_may_serve_two_layers_of_three(per: str, out: tuple[int, int], many_blocks: None) -> None:
    layers = (4, 3) if per == "source" else (3, 4)
    p = problem(layers=layers, out=out)
    for name, sizes in (("rows", out), ("cols", (9, 6))):
        first, other = KINDS["prefix"](*sizes), KINDS["prefix"](*sizes)
        setattr(p, name, [first, other, first])
    agrees_with_reference(p)


@pytest.mark.parametrize("kinds", [("prefix", "dense"), ("dense", "prefix"), ("selection", "heads")], ids=str)
@pytest.mark.parametrize("per", ["source", "target"])
def test_maps_of_different_kinds_per_layer(per: str, kinds: tuple[str, str], many_blocks: None) -> None:
    layers = (3, 2) if per == "source" else (2, 3)
    p = problem(layers=layers, out=(200, 100), into=(9, 6))
    p.rows = [KINDS[kind](200, 100) for kind in kinds]
    agrees_with_reference(p)
    p = problem(layers=layers, out=(9, 6), into=(200, 100))
    p.cols = [KINDS[kind](200, 100) for kind in kinds]
    agrees_with_reference(p)


@pytest.mark.parametrize("order", ["width_first", "depth_first"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_blocks(kind: str, order: str, many_blocks: None) -> None:
    tall = problem(kind, "diagonal", out=(204, 132), into=(9, 6), order=order)
    wide = problem("diagonal", kind, out=(9, 6), into=(204, 132), order=order)
    for p in (tall, wide):
        agrees_with_reference(p)


def test_many_blocks_are_many_and_cut_no_group(many_blocks: None) -> None:
    asked = []

    class Recording(Kron):
        def block(self, start: int, stop: int) -> Map:
            asked.append((start, stop))
            return super().block(start, stop)

    p = problem("heads", "diagonal", out=(204, 132), into=(5, 3))
    assert isinstance(p.rows, Kron)
    p.rows = Recording(p.rows.A, p.rows.B)
    p.grow_(list(poisoned(p.shape(), F64)))
    spans = sorted(set(asked))
    assert len(spans) > 3
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == 204
    assert all(start % 4 == 0 for start, _ in spans)
    assert 132 in {stop for _, stop in spans}


@pytest.mark.parametrize("depth", [None, "dense", "stack"])
@pytest.mark.parametrize("order", ["width_first", "depth_first"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_outs_are_written_through_their_strides(dtype: torch.dtype, order: str, depth: str | None) -> None:
    p = problem("diagonal", "heads", (1, 1) if depth is None else (3, 2), depth=depth, order=order)
    layers, o2, i2 = p.shape()
    want = expected(p).to(dtype)
    tolerance = {} if dtype == F64 else {"rtol": 2 * torch.finfo(dtype).eps, "atol": 0.0}
    fused = [poisoned((3 * o2, i2 + 5), dtype) for _ in range(layers)]
    stored_in_out = [poisoned((i2, 3 * o2), dtype) for _ in range(layers)]
    for wholes, view in (
        (fused, lambda t: t[o2 : 2 * o2, 2 : 2 + i2]),
        (stored_in_out, lambda t: t[:, o2 : 2 * o2].t()),
        ([poisoned((o2, 2 * i2), dtype) for _ in range(layers)], lambda t: t[:, ::2]),
    ):
        outs = [view(t) for t in wholes]
        p.grow_(outs)
        for out, right, whole in zip(outs, want, wholes, strict=True):
            torch.testing.assert_close(out, right, **tolerance)
            assert int(whole.isnan().sum()) == whole.numel() - out.numel()


@pytest.mark.parametrize("order", ["width_first", "depth_first"])
def test_sources_may_be_strided_and_of_another_dtype(order: str) -> None:
    p = problem("diagonal", "heads", order=order).over(lambda t: t.float())
    p.stack = p.stack.bfloat16()
    sources = [torch.cat([w, w]).t().contiguous().t()[: len(w)] for w in p.stack]
    assert not sources[0].is_contiguous()
    outs = list(poisoned(p.shape(), torch.float32))
    p.grow_(outs, sources)
    right = expected(p.leaves())
    assert error(torch.stack(outs), right) <= 2 * error(plain(p), right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_out_of_grow(dtype: torch.dtype) -> None:
    p = problem().over(lambda t: t.float())
    out = poisoned(p.shape(), dtype)
    assert ops.grow(p.stack, p.depth, p.rows, p.cols, out=out) is out
    torch.testing.assert_close(out, p.grown().to(dtype))


def test_out_of_grow_takes_no_gradient() -> None:
    p = problem().leaves()
    out = poisoned(p.shape(), F64)
    ops.grow(p.stack, p.depth, p.rows, p.cols, out=out)
    assert not out.requires_grad


def test_no_argument_is_changed() -> None:
    p = problem("diagonal", "scaled").leaves()
    before = [t.detach().clone() for t in p.tensors()]
    p.grown().sum().backward()
    for was, now in zip(before, p.tensors(), strict=True):
        assert torch.equal(was, now)


def error(got: Tensor, right: Tensor) -> float:
    """The norm of the error: steadier than its largest entry, which is one of few in a small factor."""
    return float((got.detach().double() - right.detach()).norm())


LARGE = {"out": (96, 60), "into": (72, 48), "layers": (4, 2)}


@pytest.mark.parametrize("order", ["width_first", "depth_first"])
@pytest.mark.parametrize("cols", ["scaled", "dense", "prefix", "diagonal", "heads"])
@pytest.mark.parametrize("rows", ["scaled", "dense", "prefix", "diagonal", "heads"])
def test_float32_error_is_that_of_torch(rows: str, cols: str, order: str) -> None:
    single = problem(rows, cols, order=order, **LARGE).leaves(torch.float32)
    double = single.leaves(F64)
    y, theirs, right = single.grown(), plain(single), expected(double)
    assert y.dtype == torch.float32
    assert error(y, right) <= 2 * error(theirs, right)
    g = torch.randn_like(right)
    exact = gradients(right, g, double)
    for ours, plains, want in zip(
        gradients(y, g.float(), single), gradients(theirs, g.float(), single), exact, strict=True
    ):
        assert error(ours, want) <= 3 * error(plains, want)


@pytest.mark.parametrize("order", ["width_first", "depth_first"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["scaled", "prefix", "heads"])
def test_half_precision_weights_with_single_factors(kind: str, dtype: torch.dtype, order: str) -> None:
    p = problem(kind, "diagonal", order=order, **LARGE).over(lambda t: t.float())
    p.stack = p.stack.to(dtype)
    single = p.over(lambda t: t.detach().clone().requires_grad_())
    double = p.leaves(F64)
    y, theirs, right = single.grown(), plain(single).to(dtype), expected(double)
    assert y.dtype == dtype
    assert error(y, right) <= 2 * error(theirs, right)
    g = torch.randn_like(right).to(dtype)
    exact = gradients(right, g.double(), double)
    for ours, plains, want in zip(gradients(y, g, single), gradients(theirs, g, single), exact, strict=True):
        assert ours.dtype == plains.dtype
        assert error(ours, want) <= 3 * error(plains, want)


CHECKED = {f"{r}, {c}": (r, c) for k in KINDS for r, c in ((k, "diagonal"), ("prefix", k))}


@pytest.mark.parametrize("depth", ["dense", "scaled"])
@pytest.mark.parametrize(("rows", "cols"), CHECKED.values(), ids=CHECKED)
def test_gradcheck(rows: str, cols: str, depth: str) -> None:
    p = problem(rows, cols, (3, 2), (6, 4), (5, 3), depth)
    if rows == "heads":
        p.rows = Kron(PrefixDiagonal(rand(1, 2), rand(2)), Dense(rand(2, 2)))
    assert_gradcheck(p)


@pytest.mark.parametrize("per", ["source", "target"])
def test_gradcheck_per_layer(per: str) -> None:
    layers = (3, 2) if per == "source" else (2, 3)
    p = problem(layers=layers, out=(6, 4), into=(5, 3))
    p.rows = [KINDS["diagonal"](6, 4) for _ in range(2)]
    p.cols = [KINDS["dense"](5, 3) for _ in range(2)]
    assert_gradcheck(p)


def assert_gradcheck(p: Problem) -> None:
    leaf = p.leaves()

    def call(*tensors: Tensor) -> Tensor:
        given = {id(old): new for old, new in zip(leaf.tensors(), tensors, strict=True)}
        return leaf.over(lambda t: given[id(t)]).grown()

    assert torch.autograd.gradcheck(call, leaf.tensors())


def test_the_same_map_on_both_sides_gets_both_gradients() -> None:
    p = problem(out=(9, 6), into=(9, 6))
    p.cols = p.rows
    agrees_with_reference(p)


@pytest.mark.parametrize("wanted", ["stack", "depth", "rows", "cols"])
def test_one_gradient_alone(wanted: str) -> None:
    p = problem("diagonal", "dense").leaves()
    target = getattr(p, wanted)
    tensors = [target] if isinstance(target, Tensor) else list(target.factors().values())
    right = torch.autograd.grad(expected(p).square().sum(), tensors)
    for t in p.tensors():
        t.requires_grad_(any(t is w for w in tensors))
    got = torch.autograd.grad(p.grown().square().sum(), tensors)
    for ours, want in zip(got, right, strict=True):
        torch.testing.assert_close(ours, want)


def pulled_back(
    p: Problem, grads: Sequence[Tensor | None], start: float, without: Sequence[str] = ()
) -> tuple[dict[str, Map | list[Map] | None], list[Tensor]]:
    """What pullback_ adds to gradients that are `start` before, by name, and to those of the sources."""

    def like(maps: Map | list[Map] | None, name: str) -> Map | list[Map] | None:
        if maps is None or name in without:
            return None
        if isinstance(maps, list):
            return [like(m, name) for m in maps]  # type: ignore[misc]
        return maps.replace({k: torch.full_like(t, start) for k, t in maps.factors().items()})

    d = {name: like(getattr(p, name), name) for name in ("depth", "rows", "cols")}
    dtype = F64 if p.dtype() == F64 else torch.float32
    d_sources = [torch.full(w.shape, start, dtype=dtype) for w in p.stack]
    backend_torch.pullback_(
        grads, list(p.stack), p.depth, p.rows, p.cols, d["depth"], d["rows"], d["cols"], p.order, dtype,
        None if "stack" in without else d_sources,
    )  # fmt: skip
    return d, d_sources


def pullback_expected(p: Problem, g: Tensor) -> list[Tensor]:
    leaf = p.leaves()
    return gradients(expected(leaf), g, leaf)


def collected(d: dict[str, Map | list[Map] | None], d_sources: list[Tensor]) -> list[Tensor]:
    """Gradients in the order of Problem.tensors, for maps that all differ."""
    maps = [m for value in d.values() if value is not None for m in as_list(value)]
    stacked = [torch.stack(d_sources)] if d_sources else []
    return [*stacked, *(t for m in maps for t in m.factors().values())]


PULLED = {
    "width first": lambda: problem("diagonal", "heads", order="width_first"),
    "depth first": lambda: problem("diagonal", "heads", order="depth_first"),
    "cols first": lambda: problem("diagonal", "diagonal", out=(9, 6), into=(12, 8)),
    "fewer layers": lambda: problem("diagonal", "dense", layers=(2, 3)),
    "selected layers": lambda: problem("diagonal", "dense", depth="scaled"),
    "selected layers depth first": lambda: problem("dense", "scaled", depth="scaled", order="depth_first"),
    "one layer": lambda: problem("diagonal", "dense", layers=(1, 1), depth=None),
    "per source": lambda: with_lists("diagonal", "dense", "source", "both"),
    "per target": lambda: with_lists("diagonal", "dense", "target", "both"),
    "rows per source": lambda: with_lists("diagonal", "dense", "source", "rows"),
    "cols per target": lambda: with_lists("diagonal", "dense", "target", "cols"),
}
each_pulled = pytest.mark.parametrize("make", PULLED.values(), ids=PULLED)


@each_pulled
def test_pullback_adds_to_what_is_there(make: Callable[[], Problem]) -> None:
    p = make()
    g = rand(*p.shape())
    got = collected(*pulled_back(p, list(g), start=1.0))
    for ours, want in zip(got, pullback_expected(p, g), strict=True):
        torch.testing.assert_close(ours, want + 1)


@each_pulled
def test_a_gradient_that_is_none_counts_as_zero(make: Callable[[], Problem]) -> None:
    p = make()
    g = rand(*p.shape())
    g[-1] = 0
    got = collected(*pulled_back(p, [*g[:-1], None], start=0.0))
    for ours, want in zip(got, pullback_expected(p, g), strict=True):
        torch.testing.assert_close(ours, want)


@each_pulled
@pytest.mark.parametrize("without", ["stack", "depth", "rows", "cols"])
def test_pullback_of_some(make: Callable[[], Problem], without: str) -> None:
    p = make()
    g = rand(*p.shape())
    some, sources = pulled_back(p, list(g), start=0.0, without=[without])
    everything, all_sources = pulled_back(p, list(g), start=0.0)
    some_list, all_list = ({**d, without: None} for d in (some, everything))
    for ours, want in zip(collected(some_list, []), collected(all_list, []), strict=True):
        torch.testing.assert_close(ours, want)
    if without != "stack":
        torch.testing.assert_close(torch.stack(sources), torch.stack(all_sources))


def test_pullback_without_any_gradient_changes_nothing() -> None:
    p = problem("diagonal", "heads")
    for t in collected(*pulled_back(p, [None] * 3, start=2.0)):
        assert torch.equal(t, torch.full_like(t, 2.0))


@pytest.mark.parametrize("order", ["width_first", "depth_first"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pullback_of_half_precision_gradients(dtype: torch.dtype, order: str) -> None:
    single = problem("diagonal", "heads", order=order, **LARGE).over(lambda t: t.float())
    single.stack = single.stack.to(dtype)
    g = rand(*single.shape()).to(dtype)
    fused = [torch.cat([t, t], dim=1).t().contiguous().t()[:, : t.shape[1]] for t in g]
    got = collected(*pulled_back(single, fused, start=0.0))
    want = pullback_expected(single, g.double())
    leaf = single.leaves(torch.float32)
    theirs = gradients(plain(leaf), g.float(), leaf)
    for ours, plains, right in zip(got, theirs, want, strict=True):
        assert error(ours, right) <= 3 * error(plains, right)


@pytest.mark.parametrize(
    "make",
    [
        lambda: problem("prefix", "prefix"),
        lambda: problem("diagonal", "heads", order="depth_first"),
        lambda: problem("scaled", "dense", depth="scaled"),
        lambda: problem("dense", "identity", layers=(2, 2), depth=None),
        lambda: with_lists("diagonal", "dense", "source", "both"),
        lambda: with_lists("diagonal", "dense", "target", "both"),
        lambda: problem("dense", "prefix", layers=(2, 3)),
    ],
    ids=["shared", "depth first", "selections", "without depth", "per source", "per target", "fewer layers"],
)
def test_compile_sees_one_graph(make: Callable[[], Problem]) -> None:
    torch._dynamo.reset()
    leaf = make().leaves()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled() -> Tensor:
        return leaf.grown()

    y, want = compiled(), expected(leaf)
    torch.testing.assert_close(y, want)
    g = torch.randn_like(want)
    for ours, right in zip(gradients(y, g, leaf), gradients(want, g, leaf), strict=True):
        torch.testing.assert_close(ours, right)


def test_transforms_of_torch_func() -> None:
    stack, depths = torch.randn(2, 3, 4).double(), torch.randn(5, 3, 2).double()
    c, identity = torch.randn(2, 4).double(), Identity(3)

    def loss(depth: Tensor, c: Tensor) -> Tensor:
        return ops.grow(stack, depth, identity, PrefixDiagonal(c)).square().sum()

    leaves = [depths[0].clone().requires_grad_(), c.clone().requires_grad_()]
    want = torch.autograd.grad(loss(*leaves), leaves)
    for got, w in zip(torch.func.grad(loss, argnums=(0, 1))(depths[0], c), want, strict=True):
        torch.testing.assert_close(got, w)
    each = torch.vmap(loss, in_dims=(0, None))(depths, c)
    torch.testing.assert_close(each, torch.stack([loss(d, c) for d in depths]))


def test_compile_takes_a_depth_tensor_and_keeps_the_dtype() -> None:
    torch._dynamo.reset()
    p = problem().over(lambda t: t.float())
    p.stack = p.stack.bfloat16()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(depth: Tensor) -> Tensor:
        return ops.grow(p.stack, depth, p.rows, p.cols)

    assert isinstance(p.depth, Dense)
    y = compiled(p.depth.M)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, p.grown())


def call(**changes: object) -> Callable[[], Tensor]:
    """ops.grow on a sound problem of 2 layers (8, 6) to 3 layers (12, 9), but for the changes."""

    def run() -> Tensor:
        p = problem()
        given = {"stack": p.stack, "depth": p.depth, "out_map": p.rows, "in_map": p.cols}
        return ops.grow(**{**given, **changes})  # type: ignore[arg-type]

    return run


def dense_list(*sizes: tuple[int, int]) -> list[Map]:
    return [Dense(torch.ones(s, dtype=F64)) for s in sizes]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (call(stack=torch.ones(8, 6)), r"stack must be \(layers, out, in\) and floating, not \(8, 6\)"),
        (call(stack=torch.ones(2, 8, 6, dtype=torch.int64)), "floating, not .*int64"),
        (call(depth=torch.ones(3, 4, dtype=F64)), "axis layer: the map takes 4 units, the stack has 2"),
        (call(out_map=Dense(torch.ones(12, 7))), "axis out: the map takes 7 units, the stack has 8"),
        (call(in_map=Dense(torch.ones(9, 5))), "axis in: the map takes 5 units, the stack has 6"),
        (call(out_map=dense_list((12, 8), (12, 7))), "axis out: the map takes 7 units"),
        (call(out_map=dense_list((12, 8), (11, 8))), "axis out: .*1[12]"),
        (call(in_map=dense_list((8, 6), (9, 6), (9, 6))), "axis in: .*[89]"),
        (call(out_map=[]), "axis out|maps per layer"),
        (call(out=torch.empty(3, 12, 8)), r"out is \(3, 12, 8\), the grown stack is \(3, 12, 9\)"),
        (call(order="widthfirst"), "order='widthfirst' is none of"),
        (call(out_map=dense_list(*[(12, 8)] * 4)), r"\[4\] maps per layer fit neither 2 source nor 3 target"),
        (
            call(out_map=dense_list(*[(12, 8)] * 2), in_map=dense_list(*[(9, 6)] * 3)),
            r"\[2, 3\] maps per layer fit neither",
        ),
        (call(out_map=dense_list(*[(12, 8)] * 2), order="depth_first"), r"\[2\] maps per layer"),
        (call(out_map=dense_list(*[(12, 8)] * 3), order="width_first"), r"\[3\] maps per layer"),
        (
            call(depth=torch.ones(2, 2, dtype=F64), out_map=dense_list(*[(12, 8)] * 2)),
            "maps per layer with 2 source and 2 target layers: say which",
        ),
    ],
    ids=[
        "a matrix for a stack", "integers", "depth", "out", "in", "second of a list", "heights in a list",
        "widths in a list", "empty list", "out shape", "order", "as many as no layers", "one list of each",
        "source maps depth first", "target maps width first", "which layers",
    ],
)  # fmt: skip
def test_errors_name_the_axis_and_the_sizes(run: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(GrowthError, match=message):
        run()


def test_a_wrong_call_writes_nothing() -> None:
    out = poisoned((3, 12, 9), F64)
    with pytest.raises(GrowthError):
        call(out=out, order="sideways")()
    assert bool(out.isnan().all())


def in_out(name: str) -> tuple[Tensor, dict[str, Any]]:
    """An `out` (3, 4, 4), and arguments that share its memory; every value is 1."""
    memory = torch.ones(100)
    out = memory[:48].view(3, 4, 4)
    args = {
        "stack": torch.ones(2, 4, 4),
        "depth": torch.ones(3, 2),
        "out_map": Identity(4),
        "in_map": Identity(4),
    }
    if name == "itself":
        out = memory.as_strided((3, 4, 4), (8, 4, 1))
    elif name == "one layer":
        out = memory[:16].view(1, 4, 4).expand(3, 4, 4)
    elif name == "a dense factor":
        args["out_map"] = Dense(out[0])
    elif name == "a diagonal":
        args["in_map"] = PrefixDiagonal(torch.ones(0, 4), memory[44:48])
    elif name == "the depth":
        args["depth"] = memory[40:46].view(3, 2)
    elif name == "a layer of the stack":
        args["stack"] = memory[32:64].view(2, 4, 4)
    return out, args


@pytest.mark.parametrize(
    "name", ["itself", "one layer", "a dense factor", "a diagonal", "the depth", "a layer of the stack"]
)
@pytest.mark.parametrize("order", ["width_first", "depth_first"])
def test_an_out_in_the_memory_of_something_else_is_refused(name: str, order: str) -> None:
    out, args = in_out(name)
    with pytest.raises(GrowthError, match="out shares memory"):
        ops.grow(**args, out=out, order=order)
    assert bool((out == 1).all())


def test_an_out_beside_the_stack_in_one_array_is_written() -> None:
    array, depth = torch.rand(3, 4, 8), Identity(3)
    ops.grow(array[:, :, :4], depth, Identity(4), Identity(4), out=array[:, :, 4:])
    assert torch.equal(array[:, :, :4], array[:, :, 4:])


@pytest.mark.parametrize("where", ["layer", "out", "in"])
def test_an_index_that_is_no_unit(where: str) -> None:
    out = poisoned((3, 3, 3), torch.float32)
    maps: dict[str, Map] = {axis: Identity(3) for axis in ("layer", "out", "in")}
    for index, message in ((3, "selection of 3 units has indices 0 to 3"), (-2, "has indices -2 to 1")):
        with pytest.raises(GrowthError, match=message):
            Selection(torch.tensor([0, index, 1]), 3)
    maps[where] = Selection(torch.tensor([0, -1, 1]), 3)
    with pytest.raises(GrowthError, match=f"axis {where}: there is no unit -1"):
        ops.grow(torch.ones(3, 3, 3), *maps.values(), out=out)
    assert bool(out.isnan().all())


@pytest.mark.parametrize("small, large", [(0, 0), (0, 3), (3, 0)])
def test_no_layers(small: int, large: int) -> None:
    with pytest.raises(GrowthError, match=f"axis layer: {small} layers cannot become {large}"):
        ops.grow(torch.ones(small, 3, 3), torch.ones(large, small), Identity(3), Identity(3))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_layers_alone_are_mixed_where_they_are(
    turned: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy of the stack comes before; also with a width that one layer's strip does not hold."""
    monkeypatch.setattr(backend_torch, "product", lambda *_: pytest.fail("copied"))
    monkeypatch.setattr(blend, "STRIP", 16)
    if not compiled:
        monkeypatch.setattr(cpu, "extension", None)
    stack = torch.randn(3, 33, 20)[:, :, 2:] if not turned else torch.randn(3, 18, 33).transpose(1, 2)
    stack, d = stack.requires_grad_(), torch.randn(5, 3, requires_grad=True)
    y = ops.grow(stack, d, Identity(33), Identity(18))
    g = torch.randn_like(y)
    grads = torch.autograd.grad(y, (stack, d), g)
    want = torch.tensordot(d.double(), stack.double(), dims=1)
    wanted = torch.autograd.grad(want, (stack, d), g.double())
    for found, right in ((y, want), *zip(grads, wanted, strict=True)):
        torch.testing.assert_close(found.double(), right.double(), atol=1e-4, rtol=1e-5)
    out = torch.full((5, 33, 18), torch.nan, dtype=torch.bfloat16)
    ops.grow(stack.detach(), d.detach(), Identity(33), Identity(18), out=out)
    assert torch.equal(out, y.detach().bfloat16())


SIZES = st.sampled_from([1, 2, 3, 5, 7, 8, 13, 66, 131])


@st.composite
def drawn_problems(draw: st.DrawFn) -> Problem:
    """Any problem of shared maps: sizes of one, odd, prime and above one block."""

    def side() -> tuple[tuple[int, int], str]:
        small, large = sorted((draw(SIZES), draw(SIZES)))
        kind = draw(st.sampled_from([k for k in KINDS if k != "identity" or small == large]))
        return (large, small), kind

    (out, rows), (into, cols) = side(), side()
    layers = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    order = draw(st.sampled_from(["auto", "width_first", "depth_first"]))
    return problem(rows, cols, layers, out, into, draw(st.sampled_from(list(DEPTHS))), order)


@settings(max_examples=25, deadline=None)
@given(drawn_problems(), st.booleans())
def test_any_problem_agrees_with_the_reference(p: Problem, small_blocks: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if small_blocks:
            patch.setattr(products, "BLOCK_BYTES", 1)
        agrees_with_reference(p)


def penalised(c: Tensor, backend: str | None = None) -> Tensor:
    """The derivative of a gradient penalty in the factor C of U and V: a derivative of derivatives."""
    stack, depth = torch.arange(32, dtype=F64).view(2, 4, 4), torch.eye(3, 2, dtype=F64)

    def fn(c: Tensor) -> Tensor:
        u = PrefixDiagonal(c)
        return ops.grow(stack, depth, u, u).sum()

    if backend == "torch.func":
        return torch.func.grad(lambda c: torch.func.grad(fn)(c).square().sum())(c)
    run = fn if backend is None else torch.compile(fn, fullgraph=True, backend=backend)
    (g,) = torch.autograd.grad(run(c), c, create_graph=True)
    return torch.autograd.grad(g.square().sum(), c)[0]


def test_second_derivatives_are_refused_and_not_zero() -> None:
    with pytest.raises(GrowthError, match="no derivatives of their own"):
        penalised(rand(2, 4).requires_grad_())


def test_second_derivatives_of_the_compiled_op_are_right_or_refused() -> None:
    c = rand(2, 4).requires_grad_()
    want = penalised(c.detach(), "torch.func")
    assert want.abs().max() > 0
    torch.testing.assert_close(penalised(c, "eager"), want)
    with pytest.raises(RuntimeError, match="double backward"):  # AOTAutograd's own words
        penalised(c, "aot_eager")


def test_second_derivatives_by_nested_transforms() -> None:
    stack, depth, c = rand(2, 3, 4), rand(3, 2), rand(2, 4)

    def fn(grow: Callable[..., Tensor], c: Tensor) -> Tensor:
        return grow(c).pow(3).sum()

    def by_op(c: Tensor) -> Tensor:
        return ops.grow(stack, depth, Identity(3), PrefixDiagonal(c))

    def plainly(c: Tensor) -> Tensor:
        v = torch.cat([torch.eye(4, dtype=F64), c])
        return torch.einsum("lj,jai,oi->lao", depth, stack, v)

    hessians = [torch.func.hessian(lambda c, f=f: fn(f, c))(c) for f in (by_op, plainly)]
    torch.testing.assert_close(*hessians)
    assert hessians[0].abs().max() > 0


@pytest.mark.parametrize("layers", [None, "tensor", "list"])
def test_matrices_in_place_of_maps(layers: str | None) -> None:
    """The call of the README, and one matrix for each source layer."""
    torch.manual_seed(0)
    stack, d = (rand(2, 5, 4).requires_grad_(), rand(3, 2).requires_grad_())
    u, v = (rand(*([] if layers is None else [2]), n2, n1).requires_grad_() for n2, n1 in ((7, 5), (6, 4)))
    matrices = (list(u), list(v)) if layers == "list" else (u, v)
    got = ops.grow(stack, d, *matrices)
    us, vs = (m.expand(2, *m.shape[-2:]) for m in (u, v))
    want = torch.einsum("lj,joa,jab,jib->loi", d, us, stack, vs)
    torch.testing.assert_close(got, want)
    weights, leaves = rand(*got.shape), (stack, d, u, v)
    grads = [torch.autograd.grad((y * weights).sum(), leaves) for y in (got, want)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("axis", ["layer", "out", "in"])
@pytest.mark.parametrize("odd", [torch.ones(3), "x", 5], ids=str)
def test_what_is_neither_a_matrix_nor_a_map(axis: str, odd: Any) -> None:
    given = {"layer": rand(3, 2), "out": rand(7, 5), "in": rand(6, 4), axis: odd}
    with pytest.raises(GrowthError, match=f"^axis {axis}: a matrix or a map is needed"):
        ops.grow(rand(2, 5, 4), *given.values())
