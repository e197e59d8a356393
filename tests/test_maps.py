"""Every map along an axis against its definition as a matrix, in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ligo_fast.maps import (
    Dense,
    Identity,
    Kron,
    Map,
    PrefixDiagonal,
    Selection,
    as_selection,
    kron,
    row_scale,
)


def matrix(m: Map) -> Tensor:
    """A map by its definition, differentiable in its factors."""
    if isinstance(m, Kron):
        return torch.kron(matrix(m.A), matrix(m.B))
    if isinstance(m, Dense):
        return m.M
    if isinstance(m, PrefixDiagonal):
        diag = torch.ones(m.shape[1], dtype=m.C.dtype) if m.diag is None else m.diag
        return torch.cat([torch.diag(diag), m.C])
    eye = torch.eye(m.shape[1], dtype=torch.float64)
    if isinstance(m, Identity):
        return eye
    assert isinstance(m, Selection)
    return eye[m.index] if m.scale is None else eye[m.index] * m.scale[:, None]


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def gather(n2: int, n1: int, scaled: bool = False) -> Selection:
    """Random units in random order; every third scaled row is a zero row."""
    scale = rand(n2) * (torch.arange(n2) % 3 != 2) if scaled else None
    return Selection(torch.randint(n1, (n2,)), n1, scale)


def run(start: int, stop: int, n1: int, scaled: bool = False) -> Selection:
    return Selection(torch.arange(start, stop), n1, rand(stop - start) if scaled else None)


def prefix(n2: int, n1: int, diag: bool = False) -> PrefixDiagonal:
    return PrefixDiagonal(rand(n2 - n1, n1), rand(n1) if diag else None)


MAPS: dict[str, Callable[[], Map]] = {
    "identity": lambda: Identity(5),
    "one unit": lambda: Identity(1),
    "run": lambda: run(0, 5, 5),
    "run inside": lambda: run(2, 5, 7),
    "run scaled": lambda: run(1, 4, 6, scaled=True),
    "gather": lambda: gather(7, 5),
    "gather fewer": lambda: gather(3, 7),
    "gather scaled": lambda: gather(7, 5, scaled=True),
    "dense taller": lambda: Dense(rand(7, 3)),
    "dense shrinking": lambda: Dense(rand(3, 7)),
    "dense one by one": lambda: Dense(rand(1, 1)),
    "dense strided": lambda: Dense(rand(3, 14)[:, ::2].t()),
    "prefix": lambda: prefix(8, 5),
    "prefix diagonal": lambda: prefix(8, 5, diag=True),
    "prefix from one": lambda: prefix(4, 1, diag=True),
    "prefix without new rows": lambda: prefix(5, 5),
    "prefix diagonal without new rows": lambda: prefix(5, 5, diag=True),
    "heads": lambda: Kron(prefix(5, 3), Identity(2)),
    "heads one to one": lambda: Kron(prefix(5, 3), Identity(1)),
    "inside heads": lambda: Kron(Identity(3), prefix(5, 2, diag=True)),
    "both sides": lambda: Kron(Dense(rand(3, 2)), prefix(5, 3)),
    "both sides fixed": lambda: Kron(gather(5, 3, scaled=True), gather(3, 2)),
    "identities": lambda: Kron(Identity(3), Identity(2)),
    "nested left": lambda: Kron(Kron(prefix(3, 2), Identity(2)), Identity(3)),
    "nested right": lambda: Kron(prefix(3, 2, diag=True), Kron(Identity(2), Dense(rand(3, 2)))),
    "group growth": lambda: Kron(Kron(prefix(3, 2), gather(4, 2, scaled=True)), Identity(2)),
    "group growth dense": lambda: Kron(Kron(Identity(2), Dense(rand(3, 2))), prefix(3, 2, diag=True)),
}
each_map = pytest.mark.parametrize("m", [pytest.param(make, id=name) for name, make in MAPS.items()])
COLUMNS = 4


def columns(rows: int, layout: str) -> Tensor:
    """(rows, COLUMNS), in one of the layouts that views of parameters have."""
    if layout == "transposed":
        return rand(COLUMNS, rows).t()
    return rand(rows, 3 * COLUMNS)[:, ::3] if layout == "strided" else rand(rows, COLUMNS)


def leaves(m: Map) -> Map:
    """The same map over fresh leaf parameters."""
    return m.replace({k: t.detach().clone().requires_grad_() for k, t in m.factors().items()})


def gradient_of(m: Map, start: float = 0.0) -> Map:
    return m.replace({k: torch.full_like(t, start) for k, t in m.factors().items()})


def spans(m: Map) -> list[tuple[int, int]]:
    """The finest blocks that cut through no group and over no boundary."""
    cuts = m.cuts()
    return [
        (a, min(a + m.grain, stop)) for start, stop in pairwise(cuts) for a in range(start, stop, m.grain)
    ]


def agrees_with_definition(m: Map, x: Tensor, g: Tensor) -> None:
    """left, its adjoint and the factors' gradients are what the matrix and autograd say."""
    m = leaves(m)
    full = matrix(m)
    torch.testing.assert_close(m.left(x), full @ x)
    torch.testing.assert_close(m.left_adjoint(g), full.t() @ g)
    grad = gradient_of(m, start=1.0)
    with torch.no_grad():
        m.accumulate(grad, x, g)
    factors = m.factors()
    if not factors:
        return
    expected = torch.autograd.grad((full @ x * g).sum(), factors.values())
    for (name, got), want in zip(grad.factors().items(), expected, strict=True):
        torch.testing.assert_close(got, want + 1, msg=lambda text, name=name: f"{name}: {text}")
    for got, want in zip(torch.autograd.grad((m.left(x) * g).sum(), factors.values()), expected, strict=True):
        torch.testing.assert_close(got, want)


@each_map
def test_dense_is_the_definition(m: Callable[[], Map]) -> None:
    made = m()
    assert made.shape == tuple(matrix(made).shape)
    torch.testing.assert_close(made.dense(), matrix(made))
    assert made.dense(torch.float32).dtype == torch.float32


@each_map
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_products_and_gradients(m: Callable[[], Map], layout: str) -> None:
    made = m()
    agrees_with_definition(made, columns(made.shape[1], layout), columns(made.shape[0], layout))


@each_map
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_left_writes_every_entry_of_out(m: Callable[[], Map], layout: str) -> None:
    made = m()
    x, out = columns(made.shape[1], layout), columns(made.shape[0], layout).fill_(torch.nan)
    assert made.left(x, out=out) is out
    torch.testing.assert_close(out, matrix(made) @ x)


@each_map
def test_inputs_are_left_alone(m: Callable[[], Map]) -> None:
    made = m()
    x, g = rand(made.shape[1], COLUMNS), rand(made.shape[0], COLUMNS)
    before = [t.clone() for t in (x, g, *made.factors().values())]
    made.left(x)
    made.left_adjoint(g)
    made.accumulate(gradient_of(made), x, g)
    for was, now in zip(before, (x, g, *made.factors().values()), strict=True):
        assert torch.equal(was, now)


@each_map
def test_cuts_and_grain_divide_the_rows(m: Callable[[], Map]) -> None:
    made = m()
    cuts = made.cuts()
    assert (cuts[0], cuts[-1]) == (0, made.shape[0])
    assert cuts == sorted(cuts)
    assert all(c % made.grain == 0 for c in cuts)


@each_map
def test_blocks_add_up_to_the_map(m: Callable[[], Map]) -> None:
    made = m()
    torch.testing.assert_close(matrix(made.block(0, made.shape[0])), matrix(made))
    blocks = [made.block(a, b) for a, b in spans(made)]
    assert [b.shape for b in blocks] == [(stop - start, made.shape[1]) for start, stop in spans(made)]
    torch.testing.assert_close(torch.cat([matrix(b) for b in blocks]), matrix(made))


@each_map
def test_any_rows_between_two_cuts_are_a_block(m: Callable[[], Map]) -> None:
    made = m()
    for a, b in pairwise(made.cuts()):
        torch.testing.assert_close(matrix(made.block(a, b)), matrix(made)[a:b])


@each_map
def test_gradients_of_blocks_go_to_the_whole(m: Callable[[], Map]) -> None:
    made = m()
    x, g = rand(made.shape[1], COLUMNS), rand(made.shape[0], COLUMNS)
    whole, by_block = gradient_of(made), gradient_of(made)
    made.accumulate(whole, x, g)
    for a, b in spans(made):
        made.block(a, b).accumulate(by_block.block(a, b), x, g[a:b])
    for name, t in by_block.factors().items():
        torch.testing.assert_close(t, whole.factors()[name])


@each_map
def test_flops_are_those_of_the_products(m: Callable[[], Map]) -> None:
    made = m()
    with FlopCounterMode(display=False) as counter:
        made.left(rand(made.shape[1], COLUMNS))
    assert made.flops(COLUMNS) == counter.get_total_flops()


@each_map
def test_replace_keeps_the_structure(m: Callable[[], Map]) -> None:
    made = m()
    doubled = made.replace({k: 2 * t for k, t in made.factors().items()})
    assert type(doubled) is type(made)
    assert (doubled.shape, doubled.grain, doubled.cuts()) == (made.shape, made.grain, made.cuts())
    assert doubled.factors().keys() == made.factors().keys()
    for name, t in doubled.factors().items():
        torch.testing.assert_close(t, 2 * made.factors()[name])


@pytest.mark.parametrize(
    ("m", "name"),
    [
        (lambda: gather(4, 3, scaled=True), "scale"),
        (lambda: prefix(4, 3, diag=True), "diag"),
        (lambda: Kron(prefix(4, 3, diag=True), Identity(2)), "A.diag"),
    ],
    ids=["scale", "diag", "in a product"],
)
def test_a_factor_not_given_becomes_absent(m: Callable[[], Map], name: str) -> None:
    made = m()
    rest = {k: t for k, t in made.factors().items() if k != name}
    assert made.replace(rest).factors().keys() == rest.keys()
    torch.testing.assert_close(
        matrix(made.replace(rest)),
        matrix(made.replace({**rest, name: torch.ones_like(made.factors()[name])})),
    )


@each_map
def test_transform_reaches_every_tensor_but_parameters(m: Callable[[], Map]) -> None:
    made = m()
    parameters = made.replace({k: torch.nn.Parameter(t) for k, t in made.factors().items()})
    kept = parameters.factors()
    made.transform(lambda t: t.float() if t.is_floating_point() else t)
    parameters.transform(lambda t: t.float() if t.is_floating_point() else t)
    assert all(t.dtype == torch.float32 for t in made.factors().values())
    assert all(parameters.factors()[name] is t for name, t in kept.items())


def test_transform_moves_the_index_too() -> None:
    m = Kron(prefix(3, 2), gather(4, 2))
    m.transform(lambda t: t.to("meta"))
    assert isinstance(m.B, Selection)
    assert m.B.index.is_meta


def test_a_run_is_taken_without_a_gather() -> None:
    x = rand(7, 2)
    assert run(2, 5, 7).left(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert (run(2, 5, 7).start, run(3, 4, 7).start) == (2, 3)
    assert gather(7, 5).start is None


@each_map
def test_factors_of_a_block_are_views(m: Callable[[], Map]) -> None:
    made = m()
    owned = {t.untyped_storage().data_ptr() for t in made.factors().values() if t.numel()}
    for a, b in spans(made):
        for t in made.block(a, b).factors().values():
            assert t.untyped_storage().data_ptr() in owned


def test_a_block_must_not_cross_a_boundary() -> None:
    with pytest.raises(ValueError, match=r"3\.\.6 cross the boundary at 5"):
        prefix(8, 5).block(3, 6)


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (1, 4)])
def test_a_block_must_not_cut_through_a_group(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=rf"{start}\.\.{stop} cut through a group of 2"):
        Kron(Dense(rand(4, 3)), Identity(2)).block(start, stop)


@pytest.mark.parametrize(
    ("a", "b", "simplest"),
    [
        (lambda: Identity(3), lambda: Identity(2), Identity),
        (lambda: Identity(1), lambda: Identity(1), Identity),
        (lambda: gather(5, 3), lambda: Identity(2), Selection),
        (lambda: Identity(3), lambda: gather(5, 2), Selection),
        (lambda: gather(5, 3, scaled=True), lambda: Identity(2), Selection),
        (lambda: Identity(2), lambda: gather(5, 3, scaled=True), Selection),
        (lambda: gather(5, 3), lambda: gather(3, 2), Selection),
        (lambda: gather(5, 3, scaled=True), lambda: gather(3, 2), Selection),
        (lambda: gather(5, 3), lambda: gather(3, 2, scaled=True), Selection),
        (lambda: gather(5, 3, scaled=True), lambda: gather(3, 2, scaled=True), Selection),
        (lambda: prefix(5, 3), lambda: Identity(1), PrefixDiagonal),
        (lambda: Dense(rand(5, 3)), lambda: Identity(1), Dense),
        (lambda: prefix(5, 3), lambda: Identity(2), Kron),
        (lambda: Identity(2), lambda: prefix(5, 3), Kron),
        (lambda: Identity(1), lambda: prefix(5, 3), Kron),
        (lambda: prefix(5, 3), lambda: gather(3, 2), Kron),
        (lambda: Kron(prefix(3, 2), Identity(2)), lambda: Identity(3), Kron),
    ],
)
def test_kron_is_simplest_and_keeps_the_matrix(
    a: Callable[[], Map], b: Callable[[], Map], simplest: type[Map]
) -> None:
    left, right = a(), b()
    made = kron(left, right)
    assert isinstance(made, simplest)
    torch.testing.assert_close(matrix(made), torch.kron(matrix(left), matrix(right)))


def test_kron_of_runs_is_a_run() -> None:
    made = kron(run(1, 3, 4), Identity(2))
    assert isinstance(made, Selection)
    assert made.start == 2


def test_as_selection_and_row_scale() -> None:
    like = torch.ones(1)
    assert torch.equal(matrix(as_selection(Identity(4))), matrix(Identity(4)))
    scaled = gather(4, 3, scaled=True)
    assert as_selection(scaled) is scaled
    assert torch.equal(row_scale(gather(4, 3), like), torch.ones(4))
    assert scaled.scale is not None
    assert torch.equal(row_scale(scaled, like), scaled.scale.float())


def test_repr_names_the_kind_and_the_size() -> None:
    assert repr(prefix(8, 5)) == "PrefixDiagonal(8 x 5)"
    assert repr(Kron(Dense(rand(3, 2)), Identity(4))) == "Kron(12 x 8)"


SIZES = st.sampled_from([1, 2, 3, 5, 7, 11, 13])


@st.composite
def drawn_maps(draw: st.DrawFn, depth: int = 2) -> Map:
    """Any map: sizes of one, odd and prime, products inside products."""
    n1, n2 = draw(SIZES), draw(SIZES)
    kind = draw(st.sampled_from(["identity", "run", "gather", "dense", "prefix", *["kron"] * (depth > 0)]))
    some = draw(st.booleans())
    if kind == "identity":
        return Identity(n1)
    if kind == "run":
        return run(0, min(n1, n2), n1, scaled=some)
    if kind == "gather":
        return gather(n2, n1, scaled=some)
    if kind == "dense":
        return Dense(rand(n2, n1))
    if kind == "prefix":
        return prefix(max(n1, n2), n1, diag=some)
    parts = draw(drawn_maps(depth - 1)), draw(drawn_maps(depth - 1))
    return kron(*parts) if some else Kron(*parts)


def is_small(m: Map) -> bool:
    return max(m.shape) <= 200


@settings(max_examples=25, deadline=None)
@given(drawn_maps().filter(is_small), st.sampled_from([1, 3, 5]))
def test_any_map_agrees_with_its_definition(m: Map, width: int) -> None:
    torch.testing.assert_close(m.dense(), matrix(m))
    agrees_with_definition(m, rand(m.shape[1], width), rand(m.shape[0], width))
    blocks = [matrix(m.block(a, b)) for a, b in spans(m)]
    torch.testing.assert_close(torch.cat(blocks), matrix(m))
