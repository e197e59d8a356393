"""The compiled mixing of layers against float64, on every shape that its loops treat apart."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ligo_fast.compute import products
from ligo_fast.compute.blend import Layout, Workspace, blend_, unblend
from ligo_fast.maps import Dense, Identity, PrefixDiagonal
from ligo_fast.native import cpu

compiled = pytest.mark.skipif(cpu.extension is None, reason=f"the extension is {cpu.state}")

# rows and columns: one, odd, prime, a vector's and a stretch's length and one beside it, empty
SHAPES = [(1, 1), (3, 5), (7, 31), (2, 32), (13, 97), (5, 256), (9, 257), (67, 300), (0, 4), (4, 0)]
LAYERS = [(1, 1), (3, 1), (1, 3), (12, 6), (6, 12), (5, 7)]  # L2, L1


def layers(n: int, shape: tuple[int, int], how: str, fill: float | None = None) -> list[Tensor]:
    """Matrices in one of several layouts, random or filled."""
    rows, columns = shape
    made = []
    for _ in range(n):
        if how == "strided":
            t = torch.randn(rows, columns + 3)[:, :columns]
        elif how == "unaligned":
            t = torch.randn(rows * columns + 1)[1:].view(rows, columns)
        else:
            t = torch.randn(rows, columns)
        made.append(t if fill is None else t.fill_(fill))
    return made


def mix(matrix: Tensor, stack: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The product with a matrix over the layers, in a dtype."""
    return torch.einsum("rc,cij->rij", matrix.to(dtype), torch.stack(stack).to(dtype))


def close(got: list[Tensor] | Tensor, exact: Tensor, plain: Tensor, allowed: float) -> bool:
    """The project's rule: at most `allowed` times the error that torch makes; never better than rounding."""
    got = torch.stack(list(got)).double()
    floor = exact.abs().max() * torch.finfo(torch.float32).eps if exact.numel() else 0.0
    return bool(((got - exact).norm() <= allowed * (plain.double() - exact).norm() + floor).all())


@compiled
@pytest.mark.parametrize("how", ["plain", "strided", "unaligned"])
@pytest.mark.parametrize("sizes", LAYERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_combine(
    shape: tuple[int, int], sizes: tuple[int, int], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (0, 1 << 40):  # always and never past the cache
        monkeypatch.setattr(cpu, "STREAM_BYTES", stream)
        outs, given = layers(sizes[0], shape, how, torch.nan), layers(sizes[1], shape, how)
        matrix = torch.randn(sizes)
        assert cpu.combine_(outs, matrix, given)
        assert close(outs, mix(matrix, given, torch.float64), mix(matrix, given, torch.float32), 2.0)


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_combine_rounds_once_and_nothing_beside_the_columns(dtype: torch.dtype) -> None:
    names = cpu.extension.instructions()
    try:
        for name, columns, size in itertools.product(names, (1, 43, 300, 512), (1, 5, 16)):
            assert cpu.extension.use(name)
            given, matrix = layers(3, (9, columns), "plain"), torch.randn(size, 3) * 1e-3
            exact = layers(size, (9, columns), "plain")
            wide = torch.full((size, 9, columns + 40), 7.0, dtype=dtype)
            outs = list(wide[:, :, 17 : columns + 17])
            assert cpu.combine_(exact, matrix, given) and cpu.combine_(outs, matrix, given)
            assert all(torch.equal(a, b.to(dtype)) for a, b in zip(outs, exact, strict=True))
            assert bool((wide[:, :, :17] == 7).all()) and bool((wide[:, :, columns + 17 :] == 7).all())
    finally:
        cpu.extension.use(names[0])


@compiled
def test_combine_writes_nothing_beside_the_columns() -> None:
    wide = [torch.zeros(9, 80) for _ in range(3)]
    assert cpu.combine_([w[:, 16:59] for w in wide], torch.randn(3, 2), layers(2, (9, 43), "plain"))
    for w in wide:
        assert w[:, 16:59].all() and not w[:, :16].any() and not w[:, 59:].any()


@compiled
@pytest.mark.parametrize("how", ["plain", "strided", "unaligned"])
@pytest.mark.parametrize("sizes", LAYERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pull(shape: tuple[int, int], sizes: tuple[int, int], how: str) -> None:
    l2, l1 = sizes
    matrix, inverse = torch.randn(l2, l1), torch.randn(l1, l2)
    grads, grown = layers(l2, shape, how), layers(l2, shape, how)
    for reads_grown in (False, True):
        mixed = layers(l1, shape, how, torch.nan)
        z = layers(l1, shape, how, torch.nan if reads_grown else None)
        sums = cpu.pull_(
            mixed, matrix, grads, z, inverse if reads_grown else None, grown if reads_grown else ()
        )
        assert sums is not None and sums.shape == (l2, l1)
        if reads_grown:
            assert close(z, mix(inverse, grown, torch.float64), mix(inverse, grown, torch.float32), 3.0)
        exact, plain = (mix(matrix.t(), grads, dtype) for dtype in (torch.float64, torch.float32))
        assert close(mixed, exact, plain, 3.0)
        a, b = (torch.stack(t).flatten(1) for t in (grads, z))
        exact, size = a.double() @ b.double().t(), a.double().abs() @ b.double().abs().t()
        assert ((sums - exact).abs() <= size * torch.finfo(torch.float32).eps).all()


@compiled
def test_pull_without_z_gives_the_mix_alone() -> None:
    mixed, grads, matrix = (
        layers(2, (5, 40), "plain", torch.nan),
        layers(3, (5, 40), "plain"),
        torch.randn(3, 2),
    )
    sums = cpu.pull_(mixed, matrix, grads)
    assert sums is not None and sums.shape == (3, 0)
    assert close(mixed, *(mix(matrix.t(), grads, d) for d in (torch.float64, torch.float32)), 3.0)


@compiled
@pytest.mark.parametrize("runtime", ["torch's threads", "own threads"])
def test_any_number_of_threads_gives_the_same_bits(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if runtime == "own threads":
        monkeypatch.setattr(cpu, "_gomp_parallel", lambda: 0)
    grads, z, matrix = layers(4, (301, 70), "plain"), layers(3, (301, 70), "plain"), torch.randn(4, 3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            mixed = layers(3, (301, 70), "plain", torch.nan)
            sums = cpu.pull_(mixed, matrix, grads, z)
            outs = layers(4, (301, 70), "plain", torch.nan)
            cpu.combine_(outs, matrix, z)
            results.append([*mixed, sums, *outs])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
def test_every_instruction_set() -> None:
    """The loops that a lesser machine would run."""
    names = cpu.extension.instructions()
    assert names[-1] == "plain"
    try:
        for name in names:
            assert cpu.extension.use(name)
            for shape in SHAPES:
                for sizes in LAYERS:
                    test_pull(shape, sizes, "plain")
                    outs, given = (
                        layers(sizes[0], shape, "plain", torch.nan),
                        layers(sizes[1], shape, "plain"),
                    )
                    matrix = torch.randn(sizes)
                    assert cpu.combine_(outs, matrix, given)
                    exact, plain = (mix(matrix, given, dtype) for dtype in (torch.float64, torch.float32))
                    assert close(outs, exact, plain, 2.0)
    finally:
        cpu.extension.use(names[0])
    assert not cpu.extension.use("none")


@compiled
def test_torchs_own_threads_are_found() -> None:
    if sys.platform.startswith("linux") and "gomp" in torch.__config__.parallel_info().lower():
        assert cpu._gomp_parallel() != 0


@compiled
@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(4, 6, dtype=torch.float64),
        torch.zeros(4, 5),
        torch.zeros(6, 4).t(),
        torch.zeros(4, 6, device="meta"),
    ],
    ids=["dtype", "shape", "columns apart", "device"],
)
def test_what_the_addresses_cannot_say_is_refused(odd: Tensor) -> None:
    fine = layers(2, (4, 6), "plain", 1.0)
    matrix = torch.randn(2, 2)
    for stack in (fine, [fine[0], odd]):
        other = fine if stack is not fine else [fine[0], odd]
        assert not cpu.combine_(stack, matrix, other)
        assert cpu.pull_(stack, matrix, other) is None
        assert cpu.pull_(fine, matrix, fine, [fine[0], odd]) is None
    assert all((t == 1).all() for t in fine)
    for wrong in (torch.randn(2, 3), matrix.double()):
        with pytest.raises(ValueError, match="matrix"):
            cpu.combine_(fine, wrong, fine)
        with pytest.raises(ValueError, match="matrix"):
            cpu.pull_(fine, matrix, fine, fine, wrong, fine)


@compiled
def test_writes_count_as_versions() -> None:
    """Autograd and the operator see the compiled writes."""
    leaf = torch.zeros(4, 6)
    z = layers(2, (4, 6), "plain")
    mixed = layers(2, (4, 6), "plain")
    versions = [t._version for t in (leaf, z[0], mixed[0])]
    cpu.combine_([leaf.view(4, 6)], torch.randn(1, 2), layers(2, (4, 6), "plain"))
    cpu.pull_(mixed, torch.randn(2, 2), layers(2, (4, 6), "plain"), z, torch.randn(2, 2), z)
    assert all(t._version > v for t, v in zip((leaf, z[0], mixed[0]), versions, strict=True))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("depth", ["dense", "prefix", "identity"])
def test_torch_and_the_compiled_blend_agree(depth: str, flip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a gradient missing, and with the grown layers given."""
    new = torch.randn(2, 3)
    d = {"dense": Dense(torch.randn(5, 3)), "prefix": PrefixDiagonal(new), "identity": Identity(3)}[depth]
    l2 = d.shape[0]
    grads = [torch.randn(40, 33) if n != 1 else None for n in range(l2)]
    inverse = torch.randn(3, l2) if depth == "dense" else None
    grown = [torch.randn(40, 33) for _ in range(l2)] if depth == "dense" else []
    stack = torch.randn(3, 40, 33)
    if flip:
        grads, grown = ([None if t is None else t.t() for t in ts] for ts in (grads, grown))
    results = []
    for off in (False, True):
        if off:
            monkeypatch.setattr(cpu, "extension", None)
        layout = Layout(flip, stack, Workspace())
        z = layout.empty(3, 33, 40) if flip else layout.empty(3, 40, 33)
        z.copy_(stack.transpose(1, 2) if flip else stack)
        outs = [torch.full((40, 33), torch.nan) for _ in range(l2)]
        blend_([o.t() for o in outs] if flip else outs, d, z, layout)
        d_depth = d.replace({k: torch.zeros_like(t) for k, t in d.factors().items()})
        back = unblend(grads, d, d_depth, z, layout, inverse, grown)
        results.append([*outs, back.clone(), z.clone(), *d_depth.factors().values()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_a_workspace_is_used_again_and_grows() -> None:
    space, like = Workspace(), torch.empty(0)
    space.reserve(like, 100)
    first = space.take(like, 33)
    assert space.take(like, 40).data_ptr() == first.data_ptr() + 48 * 4  # at the next cache line
    assert len(space.take(like, 1000)) == 1000  # more than was reserved
    space.begin()
    assert space.take(like, 5).data_ptr() == first.data_ptr()
    space.reserve(torch.empty(0, dtype=torch.float64), 10)
    space.begin()
    assert space.take(torch.empty(0, dtype=torch.float64), 10).dtype == torch.float64


@pytest.mark.parametrize(
    ("stop", "grain", "cuts"), [(3072, 1, 2048), (768, 1, 512), (100, 4, 60), (17, 1, 0)]
)
def test_blocks_cover_every_row_once_in_equal_parts(
    stop: int, grain: int, cuts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "BLOCK_BYTES", 100 * 64)
    rows = Identity(stop)
    rows.grain, rows.cuts = grain, lambda: [0, cuts, stop]  # type: ignore[method-assign]
    layout = Layout(False, torch.empty(0), Workspace())
    spans = list(products.blocks([rows], 64, layout, 1))
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])] and spans[-1][1] == stop
    assert all(a % grain == 0 and 0 < b - a <= 112 for a, b in spans)
    assert not cuts or cuts in {a for a, _ in spans}


@pytest.mark.parametrize(("value", "state"), [("1", "switched off"), ("0", cpu.state)])
def test_the_environment_switches_it_off(value: str, state: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from ligo_fast.native import cpu; print(cpu.state)"],
        env=os.environ | {"LIGO_FAST_NO_EXT": value},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if os.environ.get("LIGO_FAST_NO_EXT") != "1" or value == "1":
        assert state in done.stdout
