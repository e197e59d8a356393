"""The Triton kernels, through the plans that launch them, against the float64 oracle and its autograd.

On a machine without a GPU they run in Triton's interpreter, with its products mended (tests/interpreter.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from interpreter import mend_products
from torch import Tensor

from benchmarks import rounding as yardstick
from ligo_fast import reference
from ligo_fast.compute.backend_triton import Job, Plan, Pool, unique
from ligo_fast.errors import GrowthError
from ligo_fast.kernels import blend, expand, table
from ligo_fast.kernels.blend import BlendLaunch
from ligo_fast.kernels.expand import ProductLaunch
from ligo_fast.kernels.launch import Launches
from ligo_fast.kernels.total import LONGEST, Total, TotalLaunch
from ligo_fast.maps import Dense, Identity, Kron, Map, PrefixDiagonal, Selection

DEVICE = os.environ["LIGO_FAST_TEST_DEVICE"]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
WIDE = (F32, F16, BF16)
interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="of the interpreter")


@pytest.fixture(autouse=True)
def right_products(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        mend_products(monkeypatch)


def rand(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(DEVICE, dtype)


def prefix(n2: int, n1: int) -> Map:
    return PrefixDiagonal(rand(n2 - n1, n1))


def diagonal(n2: int, n1: int) -> Map:
    return PrefixDiagonal(rand(n2 - n1, n1), rand(n1))


def heads(n2: int, n1: int, size: int = 3) -> Map:
    return Kron(diagonal(n2, n1), Identity(size))


def groups(n2: int, n1: int) -> Map:
    return Kron(Kron(prefix(n2, n1), Identity(2)), Identity(3))


def identity(n2: int, n1: int) -> Map:
    return Identity(n1)


def dense(n2: int, n1: int) -> Map:
    return Dense(rand(n2, n1))


KINDS: dict[str, Callable[[int, int], Map]] = {
    f.__name__: f for f in (prefix, diagonal, heads, groups, identity, dense)
}


@dataclass
class Problem:
    """One family: sources and outs may be views of larger tensors, transposed, or of other dtypes."""

    layers: tuple[int, int]
    rows: Map
    cols: Map
    depth: Map | None = None
    dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32)
    transposed: tuple[bool, bool] = (False, False)
    fused: bool = False  # the blocks are the middle of a wider parameter
    sources: list[Tensor] = field(default_factory=list)
    outs: list[Tensor] = field(default_factory=list)
    bases: tuple[list[Tensor], list[Tensor]] = ((), ())  # type: ignore[assignment]
    grads: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        shapes = [(self.rows.shape[n], self.cols.shape[n]) for n in (1, 0)]
        if self.depth is None:
            self.depth = Dense(rand(self.layers[1], self.layers[0]))
        made = []
        for n, count in enumerate(self.layers):
            views, bases = [], []
            for _ in range(count):
                shape = shapes[n][::-1] if self.transposed[n] else shapes[n]
                whole = (shape[0], shape[1] + 10) if self.fused else shape
                base = rand(*whole, dtype=self.dtypes[n])
                view = base[:, 7 : 7 + shape[1]] if self.fused else base
                views.append(view.t() if self.transposed[n] else view)
                bases.append(base)
            made.append((views, bases))
        (self.sources, small), (self.outs, large) = made
        self.bases = (small, large)
        self.grads = [rand(*b.shape, dtype=b.dtype) for b in large]

    def factors(self) -> list[Tensor]:
        maps = (self.depth, self.rows, self.cols)
        return [t for m in maps if m is not None for t in m.factors().values()]

    def job(self) -> Job:
        return Job(self.depth, self.rows, self.cols, self.sources, self.outs, *self.bases)

    def views(self, bases: list[Tensor]) -> list[Tensor]:
        """Of tensors like the large parameters, the blocks that the outs are."""
        shape, stride, offset = self.outs[0].shape, self.outs[0].stride(), self.outs[0].storage_offset()
        return [b.as_strided(shape, stride, offset) for b in bases]

    def expected(self, magnitude: bool = False) -> tuple[Tensor, list[Tensor], Tensor]:
        """Outs, the factors' gradients and the sources', in float64 by autograd through the oracle.

        With `magnitude` the same sums over absolute values: what rounding errors are proportional to.
        """

        def given(t: Tensor) -> Tensor:
            return t.detach().double().abs() if magnitude else t.detach().double()

        leaves = {id(t): given(t).requires_grad_() for t in self.factors()}
        made = [
            m.replace({k: leaves[id(t)] for k, t in m.factors().items()})
            for m in (self.depth, self.rows, self.cols)
            if m is not None
        ]
        d, u, v = (m.left(torch.eye(m.shape[1], dtype=torch.float64, device=DEVICE)) for m in made)
        stack = given(torch.stack(self.sources)).requires_grad_()
        out = reference.grow(stack, d, u, v)
        grads = given(torch.stack(self.views(self.grads)))
        wanted = torch.autograd.grad(out, [*leaves.values(), stack], grads, allow_unused=True)
        gradients = [
            torch.zeros_like(t) if g is None else g for g, t in zip(wanted, leaves.values(), strict=False)
        ]
        return out.detach(), gradients, wanted[-1]


def torch_error(
    problem: Problem, expected: tuple[Tensor, list[Tensor], Tensor], precision: str
) -> tuple[float, list[float]]:
    """The error of the formula in plain torch: operands of that precision, float32 sums, rounded outs."""
    factors = [t.detach().clone().requires_grad_() for t in problem.factors()]
    copies = dict(zip([id(t) for t in problem.factors()], factors, strict=True))
    d, u, v = (
        m.replace({k: copies[id(t)] for k, t in m.factors().items()})
        for m in (problem.depth, problem.rows, problem.cols)
        if m is not None
    )
    times = yardstick.product(precision)
    u, v = (m.left(torch.eye(m.shape[1], device=DEVICE)) for m in (u, v))
    wide = [times(times(u, w), v.t()) for w in problem.sources]
    y = d.left(torch.stack(wide).flatten(1)).unflatten(1, wide[0].shape)
    grads = torch.stack(problem.views(problem.grads)).float()
    wanted = torch.autograd.grad(y, factors, grads, allow_unused=True)
    out = y.detach().to(problem.dtypes[1])
    pairs = zip(wanted, expected[1], strict=True)
    return error(out, expected[0]), [0.0 if g is None else error(g, e) for g, e in pairs]


@pytest.fixture(autouse=True)
def poisoned_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads what nobody wrote finds a NaN."""
    reserve = Pool.reserve

    def poisoned(pool: Pool, size: int) -> None:
        reserve(pool, size)
        pool.memory.fill_(0xFF)

    monkeypatch.setattr(Pool, "reserve", poisoned)


def error(got: Tensor, want: Tensor) -> float:
    return 0.0 if want.numel() == 0 else (got.double() - want).abs().max().item()


def rounding(magnitude: Tensor) -> float:
    """One rounding of the largest sum: torch may be luckier than that on a handful of numbers."""
    return 0.0 if magnitude.numel() == 0 else torch.finfo(F32).eps * magnitude.max().item()


def check(
    problem: Problem, learned: list[Tensor] | None = None, precision: str = "ieee", d_sources: bool = True
) -> Plan:
    """One plan: apply into poisoned outs, pull back onto gradients that hold something, compare."""
    expected = problem.expected()
    allowed, size = torch_error(problem, expected, precision), problem.expected(magnitude=True)
    learned = problem.factors() if learned is None else learned
    wanted = d_sources and not problem.transposed[1] and precision == "ieee"  # as ops.grow has them
    d_ws = [torch.ones(s.shape, device=DEVICE) for s in problem.sources if wanted]
    plan = Plan([problem.job()], learned, precision, d_sources=[d_ws])
    assert not plan.rejected
    outside = [b.clone() for b in problem.bases[1]]
    for out in problem.outs:
        out.fill_(torch.nan)
    plan.apply()
    got = torch.stack(problem.outs)
    assert got.isfinite().all()
    assert error(got, expected[0]) <= 2 * allowed[0] + rounding(size[0])
    for base, before, block in zip(problem.bases[1], outside, problem.views(outside), strict=True):
        block.copy_(problem.views([base])[0])
        assert torch.equal(base, before), "written outside of the block"

    known = {id(t): n for n, t in enumerate(problem.factors())}
    grads = [torch.full_like(t, 2.0) for t in learned]
    pull_back(plan, [problem], problem.grads, grads, d_ws)
    for t, g in zip(learned, grads, strict=True):
        n = known[id(t)]
        assert error(g - 2.0, expected[1][n]) <= 3 * allowed[1][n] + rounding(size[1][n] + 2)
    if d_ws:
        assert error(torch.stack(d_ws) - 1.0, expected[2]) <= 3 * rounding(size[2] + 1)
    return plan


def tensors_of(problems: list[Problem]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Sources, factors and outs as a plan's `bind` takes them."""
    sources, outs = ([t for p in problems for t in p.bases[n]] for n in (0, 1))
    return sources, unique(t for p in problems for t in p.factors()), outs


def pull_back(
    plan: Plan,
    problems: list[Problem],
    grads: list[Tensor | None],
    factor_grads: list[Tensor],
    d_sources: Sequence[Tensor] = (),
) -> None:
    assert plan.bind(*tensors_of(problems), grads)
    plan.pullback(factor_grads, d_sources)


@interpreted
def test_bf16_in_the_interpreter_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary: the day the interpreter is right by itself, the mending can go."""
    x = torch.randn(64, 64)
    want = x.bfloat16().float() @ x.bfloat16().float()

    def product() -> Tensor:
        made, slots = torch.empty(64, 64), table.Slots(torch.device("cpu"))
        out, a = (table.Matrix.of(t, slots.add(t), t) for t in (made, x))
        slots.upload()
        expand.ProductLaunch([expand.Product(out, [(a, a)])], slots, "bf16")(slots.pointers)
        return made

    assert torch.allclose(product(), want, rtol=1e-5, atol=1e-5)
    monkeypatch.undo()
    assert not torch.allclose(product(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (F16, F32)])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precision_of_products(precision: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """As good as products of operands rounded to that precision and summed in float32.

    With so many layers that the largest error of dD is no accident.
    """
    problem = Problem((4, 6), diagonal(96, 64), prefix(72, 48), dtypes=dtypes)
    check(problem, precision=precision)


@pytest.mark.parametrize("cols", KINDS)
@pytest.mark.parametrize("rows", KINDS)
def test_every_pair_of_maps(rows: str, cols: str) -> None:
    check(Problem((2, 3), KINDS[rows](7, 5), KINDS[cols](6, 4)))


@pytest.mark.parametrize("cols", ["prefix", "heads", "dense"])
@pytest.mark.parametrize("transposed", [(True, False), (False, True), (True, True)])
def test_transposed_parameters(cols: str, transposed: tuple[bool, bool]) -> None:
    check(Problem((2, 3), diagonal(11, 8), KINDS[cols](6, 4), transposed=transposed))


@pytest.mark.parametrize("transposed", [(False, False), (True, True)])
def test_a_block_of_a_fused_parameter(transposed: tuple[bool, bool]) -> None:
    check(Problem((2, 3), diagonal(24, 16), prefix(12, 8), fused=True, transposed=transposed))


@pytest.mark.parametrize("large", WIDE)
@pytest.mark.parametrize("small", WIDE)
def test_mixed_dtypes(small: torch.dtype, large: torch.dtype) -> None:
    check(Problem((2, 3), diagonal(24, 16), prefix(40, 32), dtypes=(small, large)))


@pytest.mark.parametrize(
    ("layers", "rows", "cols"),
    [
        ((1, 1), (1, 1), (1, 1)),
        ((1, 1), (3, 2), (5, 3)),  # one layer
        ((20, 18), (5, 4), (4, 3)),  # more than one chunk of layers; fewer layers than before
        ((2, 40), (3, 2), (3, 2)),
        ((17, 33), (3, 2), (21, 19)),  # every sum over layers in several parts
        ((2, 3), (64, 64), (96, 64)),  # exact multiples of a block; an axis that does not grow
        ((2, 3), (65, 33), (67, 31)),  # one past a block, and primes
        ((2, 3), (37, 36), (128, 1)),  # hardly any new units; one old unit
    ],
)
def test_sizes(layers: tuple[int, int], rows: tuple[int, int], cols: tuple[int, int]) -> None:
    check(Problem(layers, diagonal(*rows), prefix(*cols)))


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    torch.manual_seed(0)
    layers = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    maps = []
    for side in ("rows", "cols"):
        kind = data.draw(st.sampled_from(sorted(KINDS)), side)
        old = data.draw(st.integers(1, 6), f"old {side}")
        maps.append(KINDS[kind](old + data.draw(st.integers(0, 6), f"new {side}"), old))
    transposed = data.draw(st.tuples(st.booleans(), st.booleans()))
    check(Problem(layers, *maps, transposed=transposed, fused=data.draw(st.booleans())))


@pytest.mark.parametrize("rows", [1, 3])
def test_vectors(rows: int) -> None:
    """Biases and gains: one number a unit, as a column or as a row."""
    check(Problem((2, 3), diagonal(40, 33), Identity(1)))
    check(Problem((2, 3), Identity(rows), diagonal(40, 33)))


def test_a_depth_that_selects() -> None:
    depth = Selection(
        torch.tensor([0, 1, 0, 1], device=DEVICE), 2, torch.tensor([1.0, 2, 0, 1], device=DEVICE)
    )
    problem = Problem((2, 4), prefix(6, 4), diagonal(5, 4), depth=depth)
    check(problem, [t for t in problem.factors() if t is not depth.scale])


def test_only_what_is_learned_gets_a_gradient() -> None:
    problem = Problem((2, 3), diagonal(6, 4), prefix(5, 4))
    for t in problem.factors():
        check(problem, [t])


def test_missing_gradients_count_as_zero() -> None:
    problem = Problem((2, 3), diagonal(6, 4), prefix(5, 4))
    problem.grads[1].zero_()
    expected = problem.expected()[1]
    plan = Plan([problem.job()], problem.factors(), "ieee")
    got = [torch.zeros_like(t) for t in problem.factors()]
    pull_back(plan, [problem], [problem.grads[0], None, problem.grads[2]], got)
    for g, want in zip(got, expected, strict=True):
        assert error(g, want) <= 1e-5 * want.abs().max()


@pytest.mark.usefixtures("block_shapes")
def test_shared_factors_and_waves() -> None:
    """Families that share a map add to one gradient, in whatever number of waves."""
    shared = diagonal(12, 8)
    problems = [Problem((2, 3), shared, prefix(6, 4)), Problem((1, 2), prefix(5, 3), shared)]
    factors = list({id(t): t for p in problems for t in p.factors()}.values())
    want = {id(t): torch.zeros(t.shape, dtype=torch.float64, device=DEVICE) for t in factors}
    for p in problems:
        for t, g in zip(p.factors(), p.expected()[1], strict=True):
            want[id(t)] += g
    results = []
    for limit in (1 << 30, 1):
        plan = Plan([p.job() for p in problems], factors, "ieee", workspace=limit)
        got = [torch.zeros_like(t) for t in factors]
        pull_back(plan, problems, [g for p in problems for g in p.grads], got)
        results.append((plan, got))
        for t, g in zip(factors, got, strict=True):
            assert error(g, want[id(t)]) <= 1e-5 * want[id(t)].abs().max()
        for p in problems:  # the workspace of both directions is one
            for out in p.outs:
                out.fill_(torch.nan)
        plan.apply()
        for p in problems:
            expected = p.expected()[0]
            assert error(torch.stack(p.outs), expected) <= 1e-5 * expected.abs().max()
    assert len(results[1][0].pullback_launches) > len(results[0][0].pullback_launches)


@pytest.mark.usefixtures("block_shapes")
def test_programs_of_large_blends_work_through_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer partial sums of dD: their memory does not grow with the model."""
    parts = []
    for limit in (2048, 1):
        monkeypatch.setattr(blend, "MAX_PROGRAMS", limit)
        problem = Problem((2, 3), diagonal(130, 66), diagonal(67, 31))
        plan = check(problem)
        slot = plan.lowering.sums[id(problem.factors()[0])]
        parts.append(
            max(
                t.parts
                for launch in plan.pullback_launches
                if isinstance(launch, TotalLaunch)
                for t in launch.totals
                if t.sums_slot == slot
            )
        )
    assert parts[1] < parts[0] / 2


def test_totals_of_many_parts_and_of_many_outs() -> None:
    """Both shapes of a program's work, in one launch, onto what is there; outside of it nothing changes."""
    sizes = [(1, 1, 1), (7, 300, 1), (9, 513, 1), (5, 20, 3), (300, 8, 2), (257, 9, 1), (LONGEST + 1, 9, 1)]
    slots = table.Slots(torch.device(DEVICE))
    outs = [rand(n + 3) for n, _, _ in sizes]
    sums = [rand(parts, n, group) for n, parts, group in sizes]
    wanted = [s.double().sum((0, 2)) + o[1:-2].double() for s, o in zip(sums, outs, strict=True)]
    before = [o.clone() for o in outs]
    items = [
        Total(slots.add(o), 1, slots.add(s), 0, *size) for o, s, size in zip(outs, sums, sizes, strict=True)
    ]
    assert {t.is_long for t in items} == {True, False}
    slots.upload()
    TotalLaunch(items, slots)(slots.pointers)
    for out, want, old, s in zip(outs, wanted, before, sums, strict=True):
        assert error(out[1:-2], want) <= 8 * rounding(s.double().abs().sum((0, 2)) + 3)
        assert torch.equal(out[[0, -2, -1]], old[[0, -2, -1]])


def test_launches_do_not_grow_with_the_layers() -> None:
    counts = []
    for layers in ((1, 2), (6, 12)):
        problem = Problem(layers, diagonal(6, 4), prefix(5, 4))
        plan = Plan([problem.job()], problem.factors(), "ieee")
        pull_back(plan, [problem], problem.grads, [torch.zeros_like(t) for t in problem.factors()])
        counts.append((len(plan.apply_launches), len(plan.pullback_launches)))
    assert counts[0] == counts[1]
    assert max(counts[0]) <= 9


def test_launches_do_not_grow_with_the_layers_of_a_real_model() -> None:
    """Sizes of GPT-2's weights, of which only the tables are made."""

    def job(layers: tuple[int, int], rows: PrefixDiagonal, cols: PrefixDiagonal) -> Job:
        stacks = [
            [torch.empty(m, n, device="cpu") for _ in range(count)]
            for count, m, n in zip(layers, rows.shape[::-1], cols.shape[::-1], strict=True)
        ]
        depth = Dense(torch.empty(layers[::-1], device="cpu"))
        return Job(depth, rows, cols, stacks[0], stacks[1], stacks[0], stacks[1])

    width, inner = (PrefixDiagonal(torch.empty(n // 3, n, device="cpu")) for n in (768, 3072))
    counts = []
    for layers in ((2, 4), (12, 24)):
        jobs = [
            job(layers, *maps) for maps in ((width, width), (inner, width), (width, inner), (inner, width))
        ]
        plan = Plan(jobs, [width.C, inner.C, *(j.depth.M for j in jobs)], "tf32")  # type: ignore[union-attr]
        counts.append((len(plan.apply_launches), len(plan.pullback_launches)))
        assert (256 << 20 < plan.pullback_launches.memory < 1 << 30) == (layers == (12, 24))
    assert counts[0] == counts[1]


def test_the_second_call_uploads_and_allocates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem((2, 3), diagonal(6, 4), prefix(5, 4))
    plan = Plan([problem.job()], problem.factors(), "ieee")
    grads = [torch.zeros_like(t) for t in problem.factors()]
    plan.apply()
    pull_back(plan, [problem], problem.grads, grads)
    monkeypatch.setattr(table, "_pinned", lambda *_: pytest.fail("uploaded again"))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("allocated again"))
    assert plan.bind(*tensors_of([problem]))
    plan.apply()
    pull_back(plan, [problem], problem.grads, grads)


def test_tensors_may_move() -> None:
    """New addresses are picked up: gradients are made anew in every step."""
    problem = Problem((2, 3), diagonal(6, 4), prefix(5, 4))
    plan = Plan([problem.job()], problem.factors(), "ieee")
    got = [[torch.zeros_like(t) for t in problem.factors()] for _ in range(2)]
    pull_back(plan, [problem], problem.grads, got[0])
    pull_back(plan, [problem], [g.clone() for g in problem.grads], got[1])
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))
    for out in problem.outs:
        out.data = out.data.clone()
    assert plan.bind(*tensors_of([problem]))
    plan.apply()
    assert error(torch.stack(problem.outs), problem.expected()[0]) < 1e-4


def test_what_does_not_lie_as_the_tables_say_is_told() -> None:
    """Also where the address is the same, and among gradients that are missing."""
    problem = Problem((2, 3), diagonal(4, 4), diagonal(4, 4))
    plan = Plan([problem.job()], problem.factors(), "ieee")
    sources, factors, outs = tensors_of([problem])
    grads: list[Tensor | None] = [None, *problem.grads[1:]]
    assert plan.bind(sources, factors, outs) and plan.bind(sources, factors, outs, grads)
    for odd in (outs[0].t(), outs[0][:3], outs[0].to(BF16), outs[0].reshape(2, 8), outs[0].to("meta")):
        assert not plan.bind(sources, factors, [odd, *outs[1:]])
        assert not plan.bind([odd, sources[1]], factors, outs)
        assert not plan.bind(sources, factors, outs, [odd, None, None])
    assert not plan.bind(sources, [f[:1] for f in factors], outs)


def test_the_gradient_of_a_factor_lies_as_the_factor_does() -> None:
    """The kernels add to it without asking."""
    problem = Problem((2, 3), diagonal(6, 4), prefix(5, 4))
    plan = Plan([problem.job()], problem.factors(), "ieee")
    grads = [torch.zeros_like(t) for t in problem.factors()]
    for odd in (grads[0].double(), grads[0].t().contiguous().t(), grads[0].to("meta")):
        with pytest.raises(GrowthError, match="gradient of a factor"):
            pull_back(plan, [problem], problem.grads, [odd, *grads[1:]])
    pull_back(plan, [problem], problem.grads, grads)
    assert all(bool(g.any()) for g in grads)


def test_unaligned_addresses() -> None:
    """A parameter that starts in the middle of 16 bytes (a slice of a flat buffer) works, just slower.

    Others are not slower for it; and it is noticed where such a parameter, or gradient, comes later.
    """
    problems = [Problem((1, 1), diagonal(16, 8), prefix(16, 8)) for _ in range(2)]
    factors = [t for p in problems for t in p.factors()]
    want = [p.expected()[0] for p in problems]
    plan = Plan([p.job() for p in problems], factors, "ieee")
    pulled = [torch.zeros_like(t) for t in factors]
    pull_back(plan, problems, [g for p in problems for g in p.grads], pulled)
    first = plan.apply_launches, plan.pullback_launches

    def alignments(launches: Launches) -> dict[type, set[object]]:
        found: dict[type, set[object]] = {}
        for launch in launches:
            found.setdefault(type(launch), set()).add(launch.options.get("ALIGN"))
        return found

    assert alignments(first[0]) == {ProductLaunch: {4}, BlendLaunch: {4}}
    flat = torch.zeros(257, device=DEVICE)
    problems[0].outs[0].set_(flat[1:].view(16, 16))
    assert plan.bind(*tensors_of(problems))
    plan.apply()
    assert alignments(plan.apply_launches) == {ProductLaunch: {4}, BlendLaunch: {1, 4}}
    for p, expected in zip(problems, want, strict=True):
        assert error(torch.stack(p.outs), expected) < 1e-4
    assert flat[0] == 0

    moved = torch.zeros(257, device=DEVICE)[1:].view(16, 16).copy_(problems[0].grads[0])
    again = [torch.zeros_like(t) for t in factors]
    pull_back(plan, problems, [moved, *problems[1].grads], again)
    assert alignments(plan.pullback_launches)[BlendLaunch] == {1, 4}
    for a, b in zip(pulled, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    problems[0].outs[0].set_(torch.zeros(16, 16, device=DEVICE))
    assert plan.bind(*tensors_of(problems), [g for p in problems for g in p.grads])
    assert plan.bind(*tensors_of(problems))
    assert (plan.apply_launches, plan.pullback_launches) == first, "kept"


def test_a_factor_that_is_not_aligned() -> None:
    """C in the middle of 16 bytes: only products that read it load single elements."""
    c = torch.randn(8 * 8 + 1, device=DEVICE)[1:].view(8, 8)
    problem = Problem((2, 3), PrefixDiagonal(c), prefix(16, 8))
    plan = check(problem)
    aligns = [launch.options["ALIGN"] for launch in plan.apply_launches if isinstance(launch, ProductLaunch)]
    assert sorted(aligns) == [1, 4]


def test_plans_keep_launches_for_a_few_patterns_of_alignment() -> None:
    problem = Problem((1, 1), prefix(16, 8), prefix(16, 8))
    plan = Plan([problem.job()], problem.factors(), "ieee")
    for n in range(6):
        problem.outs[0].set_(torch.zeros(300, device=DEVICE)[n : n + 256].view(16, 16))
        assert plan.bind(*tensors_of([problem]))
        assert plan.apply_launches
    assert len(plan.launching._made) == 4


def test_more_than_two_to_the_31_elements() -> None:
    """Addresses are 64 bits wide: rows of the target lie 2^30 elements apart."""
    problem = Problem((1, 1), prefix(4, 2), prefix(5, 3), dtypes=(F16, F16))
    whole = torch.empty(3 * 2**30 + 8, dtype=F16, device=DEVICE)
    problem.outs[0].set_(whole.as_strided((4, 5), (2**30, 1)))
    problem.grads[0] = problem.grads[0].as_strided((4, 5), (5, 1))
    plan = Plan([problem.job()], problem.factors(), "ieee")
    plan.apply()
    want = reference.grow(
        torch.stack(problem.sources), problem.depth.dense(), problem.rows.dense(), problem.cols.dense()
    )  # type: ignore[union-attr]
    assert error(problem.outs[0][None], want) <= 2e-3 * want.abs().max()


def test_what_the_kernels_do_not_cover_is_left_to_torch() -> None:
    double = Problem((1, 1), prefix(4, 2), prefix(5, 3), dtypes=(torch.float64, torch.float64))
    selected = Problem((1, 1), Selection(torch.tensor([0, 1, 0], device=DEVICE), 2), prefix(5, 3))
    both = Problem((1, 1), Kron(prefix(3, 2), prefix(3, 2)), prefix(5, 3))
    plan = Plan([p.job() for p in (double, selected, both)], [], "ieee")
    assert sorted(plan.rejected) == [0, 1, 2]
