"""What the kernels leave out: copies of what is a grown weight already, products that nothing reads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from test_kernels import (
    BF16,
    DEVICE,
    F16,
    F32,
    KINDS,
    Problem,
    check,
    dense,
    diagonal,
    heads,
    prefix,
    pull_back,
    rand,
)
from test_kernels import right_products as right_products
from torch import Tensor

from ligo_fast.bench.cases import CASES
from ligo_fast.bench.measure import fewest
from ligo_fast.compute import quadrants, waves
from ligo_fast.compute.backend_triton import Job, Plan
from ligo_fast.compute.backends import PiecePlan
from ligo_fast.kernels.blend import BlendLaunch
from ligo_fast.kernels.expand import ProductLaunch
from ligo_fast.kernels.launch import Launch
from ligo_fast.maps import Dense, Identity, Map, PrefixDiagonal, Selection
from ligo_fast.plan import Piece, Slot


def kinds(launches: Sequence[Launch] | None) -> list[str]:
    """What is launched, in order."""
    return [type(launch).__name__.removesuffix("Launch") for launch in launches or []]


def flops(launches: Sequence[Launch] | None) -> int:
    """Of the products."""
    return sum(launch.flops for launch in launches or [] if isinstance(launch, ProductLaunch))


def without_depth(rows: Map, cols: Map, layers: int = 1, **options: object) -> Problem:
    return Problem((layers, layers), rows, cols, depth=Identity(layers), **options)  # type: ignore[arg-type]


def test_an_embedding_has_no_copy_of_its_new_columns() -> None:
    """(20, 8) to (20, 16): one product into the weights, one out of their gradient; no workspace."""
    c, w, y = torch.nn.Parameter(rand(8, 8)), rand(20, 8), rand(20, 16)
    rows, cols = Identity(20), PrefixDiagonal(c)
    plan = Plan([Job(None, rows, cols, [w], [y], [w], [y])], [c], "ieee")
    y.fill_(torch.nan)
    plan.apply()
    assert torch.equal(y[:, :8], w)
    torch.testing.assert_close(y[:, 8:], w @ c.detach().t())
    g, dc = rand(20, 16), torch.zeros_like(c)
    assert plan.bind([w], [c], [y], [g])
    plan.pullback([dc])
    torch.testing.assert_close(dc, g[:, 8:].t() @ w)
    assert kinds(plan.apply_launches) == ["Product", "Blend"]  # the blend copies the old columns
    assert kinds(plan.pullback_launches) == ["Product", "Total"]
    assert (plan.apply_launches.memory, plan.pullback_launches.memory) == (0, 4 * 8 * 8)  # the partial sum
    piece = Piece("", [""], [""], Slot(1), Slot(1), None, rows, PrefixDiagonal(c))
    assert flops(plan.apply_launches) == piece.flops(False) == 2 * 20 * 8 * 8
    assert flops(plan.pullback_launches) == piece.flops(True) == 2 * 20 * 8 * 8


@pytest.mark.parametrize("cols", ["prefix", "diagonal", "groups", "dense"])
@pytest.mark.parametrize("rows", ["identity", "prefix", "heads", "dense"])
def test_every_pair_of_maps_without_a_depth(rows: str, cols: str) -> None:
    check(without_depth(KINDS[rows](7, 5), KINDS[cols](6, 4), layers=2))


def test_weights_that_do_not_grow_get_their_gradient_added() -> None:
    """Nothing is mixed and no unit is new: the gradient of the sources is that of the outs."""
    w, y, g = (rand(6, 5) for _ in range(3))
    d_w = torch.ones_like(w)
    plan = Plan([Job(None, Identity(6), Identity(5), [w], [y], [w], [y])], [], "ieee", d_sources=[[d_w]])
    plan.apply()
    assert torch.equal(y, w)
    assert plan.bind([w], [], [y], [g])
    plan.pullback([], [d_w])
    assert torch.equal(d_w, g + 1)


@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (BF16, F32)])
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_precision_without_a_depth(
    monkeypatch: pytest.MonkeyPatch, precision: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """BR is a product of BL: that is read off the grown weights only where they hold what BL would."""
    monkeypatch.setattr(quadrants, "OWN_LAUNCH", 0)
    check(without_depth(prefix(40, 32), prefix(64, 32), dtypes=dtypes), precision=precision)
    rounded = dtypes[1] not in (F32, BF16 if precision == "bf16" else F32)
    size = 2 if precision == "bf16" else 4
    factors = (32 * 32 * 2, 8 * 32 * 2) if precision == "bf16" else (0, 0)  # products read them in bfloat16
    lone = Plan([without_depth(Identity(32), prefix(64, 32), dtypes=dtypes).job()], [], precision)
    assert lone.apply_launches.memory == factors[0]
    plan = Plan([without_depth(prefix(40, 32), prefix(64, 32), dtypes=dtypes).job()], [], precision)
    assert plan.apply_launches.memory == factors[0] + (8 * 32 * size if rounded else 0)


def everything(problem: Problem) -> list[Tensor]:
    """What a plan with bfloat16 products writes: outs, the gradients of the factors and of the sources."""
    factors = problem.factors()
    d_ws = [torch.ones(t.shape, device=DEVICE) for t in problem.sources]
    plan = Plan([problem.job()], factors, "bf16", d_sources=[d_ws])
    plan.apply()
    grads = [torch.zeros_like(t) for t in factors]
    pull_back(plan, [problem], problem.grads, grads, d_ws)
    return [t.clone() for t in (*problem.outs, *grads, *d_ws)]


@pytest.mark.parametrize(
    ("rows", "cols", "dtype"),
    [
        (prefix(48, 24), prefix(56, 24), BF16),  # BR of BL
        (prefix(56, 24), prefix(48, 24), F32),  # BR of TR
        (dense(48, 24), diagonal(56, 24), BF16),
        (heads(6, 3, 8), prefix(48, 24), BF16),  # a blend adds to dTR
    ],
)
def test_rounding_beforehand_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, rows: Map, cols: Map, dtype: torch.dtype
) -> None:
    """Factors and gradients that products read in bfloat16, against float32 that each product rounds."""
    problem = Problem((1, 2), rows, cols, dtypes=(dtype, dtype))
    beforehand = everything(problem)
    monkeypatch.setattr(quadrants._Work, "_factor", lambda self, step, out: step.C)
    monkeypatch.setattr(quadrants._Work, "_gradient_dtype", lambda *_: torch.float32)
    for got, want in zip(beforehand, everything(problem), strict=True):
        assert torch.equal(got, want)


def operands(rows: Map, cols: Map) -> tuple[set[str], set[str]]:
    """What the wide and the thin bfloat16 products of both directions read."""
    problem = Problem((1, 2), rows, cols, dtypes=(BF16, BF16))
    plan = Plan([problem.job()], problem.factors(), "bf16")
    launches = [*plan.apply_launches, *plan.pullback_launches]
    kinds = {launch.kind for launch in launches if isinstance(launch, ProductLaunch)}
    wide, thin = ({f"{k.a} {k.b}" for k in kinds if k.size == size} for size in ("wide", "thin"))
    return wide, thin


def test_products_of_bfloat16_weights_convert_nothing() -> None:
    """Only so are operands copied to where tensor cores read them while these work on the last ones."""
    assert operands(prefix(48, 24), prefix(56, 24)) == ({f"{BF16} {BF16}"}, set())


def test_products_of_a_few_rows_read_float32() -> None:
    """They are as exact as float32: biases, gains, up to 16 new units."""
    assert operands(Identity(1), prefix(56, 32))[1] == {f"{BF16} {F32}"}
    assert operands(prefix(40, 32), Identity(24))[1] == {f"{F32} {BF16}"}


@pytest.mark.parametrize(
    "options", [{"fused": True}, {"transposed": (True, True)}, {"transposed": (False, True)}]
)
def test_blocks_and_transposed_parameters_without_a_depth(options: dict[str, object]) -> None:
    check(without_depth(prefix(24, 16), prefix(12, 8), **options))


def test_vectors_without_a_depth() -> None:
    check(without_depth(Identity(1), prefix(40, 33)))
    check(without_depth(heads(12, 8), Identity(1)))


def test_a_block_off_16_bytes_is_copied_there() -> None:
    """Else the kernels would load single elements: after 6 old columns 8 new ones lie off, alone not."""
    plan = check(without_depth(Identity(8), prefix(14, 6)))
    assert plan.apply_launches.memory > 0
    plan = check(without_depth(Identity(8), prefix(15, 6)))  # 9 new ones are, wherever they lie
    assert plan.apply_launches.memory == 0


def test_a_small_gradient_in_bfloat16_has_no_launch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 gradients share the launch of the others; these are read where they are if they are many."""
    for dtype, least, copied in ((F32, 1 << 20, False), (BF16, 1 << 20, True), (BF16, 9 * 8, False)):
        monkeypatch.setattr(quadrants, "OWN_LAUNCH", least)
        problem = without_depth(Identity(9), prefix(16, 8), dtypes=(dtype, dtype))
        plan = check(problem, precision="bf16")
        assert ("Blend" in kinds(plan.pullback_launches)) == copied


def test_missing_gradients_without_a_depth() -> None:
    """Products read gradients where they are, and some are nowhere."""
    problem = without_depth(Identity(9), prefix(8, 4), layers=3)
    problem.grads[1].zero_()
    want = problem.expected()[1]
    plan = Plan([problem.job()], problem.factors(), "ieee")
    for grads in ([problem.grads[0], None, problem.grads[2]], [None, None, None]):
        got = [torch.zeros_like(t) for t in problem.factors()]
        pull_back(plan, [problem], grads, got)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(
                g.double(), w if grads[0] is not None else torch.zeros_like(w), rtol=1e-5, atol=1e-5
            )


def test_a_depth_that_repeats_nothing_is_the_identity() -> None:
    for depth, copied in (
        (Selection(torch.tensor([0, 1], device=DEVICE), 2, torch.ones(2, device=DEVICE)), False),
        (Selection(torch.tensor([1, 0], device=DEVICE), 2), True),
        (Selection(torch.tensor([0, 1], device=DEVICE), 2, torch.tensor([1.0, 2], device=DEVICE)), True),
        (Dense(torch.eye(2, device=DEVICE)), True),  # may be learned, or written to
    ):
        problem = Problem((2, 2), Identity(4), prefix(6, 4), depth=depth)
        plan = Plan([problem.job()], [], "ieee")
        assert (plan.apply_launches.memory > 0) == copied


STACKED = torch.tensor([0, 1, 0, 1])


@pytest.mark.usefixtures("block_shapes")
@pytest.mark.parametrize(
    ("learned", "products"),  # in FLOPs of BR's product; those of BL and of TR are twice that
    [
        ("depth", 5),  # BL, TR and BR, for dD
        ("rows", 3),  # from dBR back to dBL; dC_u
        ("cols", 5),  # BL; dC_v from dBR and from dTR
    ],
)
def test_products_that_nothing_reads_are_left_out(learned: str, products: int) -> None:
    """Of one factor alone the gradient is right, and is all that is computed."""
    depth = Dense(rand(4, 2)) if learned == "depth" else Selection(STACKED.to(DEVICE), 2)
    problem = Problem((2, 4), prefix(12, 8), prefix(12, 8), depth=depth)
    (factor,) = getattr(problem, learned).factors().values()
    plan = check(problem, [factor], d_sources=False)
    assert flops(plan.pullback_launches) == products * 2 * (2 * 4 * 8 * 4)


@pytest.mark.parametrize("side", ["rows", "cols"])
def test_a_learned_scale_reads_the_products_it_scales(side: str) -> None:
    maps = {"rows": prefix(12, 8), "cols": prefix(12, 8), side: diagonal(12, 8)}
    problem = Problem((2, 4), **maps, depth=Selection(STACKED.to(DEVICE), 2))
    check(problem)
    check(problem, [maps[side].factors()["diag"]], d_sources=False)


@pytest.mark.usefixtures("block_shapes")
def test_a_long_vocabulary_is_summed_by_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One segment, as long as the vocabulary, would be the work of as many programs as dC has tiles."""
    monkeypatch.setattr(waves, "SHORTEST", 64)
    problem = without_depth(Identity(301), prefix(12, 8))
    plan = check(problem, d_sources=False)
    (product,) = (launch for launch in plan.pullback_launches if isinstance(launch, ProductLaunch))
    assert product.grid == (5,)
    lengths = product.tables[1][:, 4].tolist()
    assert sum(lengths) == 301 and max(lengths) == 64 and all(n % 64 == 0 for n in lengths[:-1])
    assert product.kind.align == 4


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-llama"])
def test_a_plan_does_no_less_than_the_floor_counts(name: str) -> None:
    """Nor much more than the operator says: what a benchmark holds a plan against is honest."""
    op = CASES[name].operator(DEVICE)
    plan = PiecePlan(op.pieces, op.small, op.large, list(op.parameters()), "ieee").plan
    assert plan is not None and not plan.rejected
    for work, launches in (("apply", plan.apply_launches), ("pullback", plan.pullback_launches)):
        done = sum(launch.flops for launch in launches if isinstance(launch, ProductLaunch | BlendLaunch))
        assert fewest(op, work)[1] <= done <= 1.05 * op.flops(work)
