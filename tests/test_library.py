"""The registered ops: torch's own checks, autograd against the float64 oracle, whole-graph compilation."""

from __future__ import annotations

import gc
import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

import ligo_fast as lf
from ligo_fast import ops, reference
from ligo_fast.compute import library
from ligo_fast.compute.backend_triton import Plan
from ligo_fast.maps import Dense, Identity, Kron, Map, PrefixDiagonal, Selection

DEVICE = os.environ["LIGO_FAST_TEST_DEVICE"]
pytestmark = pytest.mark.usefixtures("on_kernels")


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


MAPS = {
    "prefix": lambda: PrefixDiagonal(rand(2, 3)),
    "diagonal": lambda: PrefixDiagonal(rand(2, 3), rand(3)),
    "dense": lambda: Dense(rand(5, 3)),
    "heads": lambda: Kron(Kron(PrefixDiagonal(rand(1, 2), rand(2)), Identity(2)), Identity(3)),
    "identity": lambda: Identity(4),
}


def leaves(m: Map) -> Map:
    return m.replace({k: t.clone().requires_grad_() for k, t in m.factors().items()})


@pytest.mark.parametrize("name", MAPS)
def test_maps_survive_being_words(name: str) -> None:
    m = MAPS[name]()
    encoded = library.encode(m)
    assert encoded is not None
    again = library.decode(*encoded)
    assert type(again) is type(m)
    assert torch.equal(again.dense(), m.dense())


def test_maps_that_the_kernels_do_not_cover_have_no_word() -> None:
    assert library.encode(Selection(torch.arange(2), 2)) is None
    assert library.encode(Kron(Identity(2), PrefixDiagonal(rand(1, 2)))) is None


@pytest.mark.parametrize("cols", ["diagonal", "heads"])
@pytest.mark.parametrize("rows", ["prefix", "dense", "identity"])
def test_opcheck(rows: str, cols: str) -> None:
    u, v = leaves(MAPS[rows]()), leaves(MAPS[cols]())
    (u_word, us), (v_word, vs) = library.encode(u), library.encode(v)  # type: ignore[misc]
    stack, depth = rand(2, u.shape[1], v.shape[1]).requires_grad_(), rand(3, 2).requires_grad_()
    arguments = (stack, depth, us, vs, u_word, v_word, "ieee")
    torch.library.opcheck(library.grow, arguments)
    grad = rand(3, u.shape[0], v.shape[0])
    torch.library.opcheck(library.grow_backward, (grad, *(_detached(a) for a in arguments), True))


def _detached(value: object) -> object:
    if isinstance(value, list):
        return [_detached(v) for v in value]
    return value.detach() if isinstance(value, Tensor) else value


def test_second_derivatives_are_refused() -> None:
    m, stack, depth = leaves(MAPS["prefix"]()), rand(2, 3, 3), rand(3, 2)
    y = ops.grow(stack, depth, m, m).sum()
    with pytest.raises(lf.GrowthError, match="no derivatives of their own"):
        torch.autograd.grad(y, list(m.factors().values()), create_graph=True)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_gradients_are_those_of_the_oracle(mode: str) -> None:
    u, v = leaves(MAPS["diagonal"]()), leaves(MAPS["heads"]())
    stack, depth = rand(2, 3, 12).requires_grad_(), rand(3, 2).requires_grad_()
    inputs = [stack, depth, *u.factors().values(), *v.factors().values()]

    def loss(stack: Tensor, depth: Tensor, u: Map, v: Map) -> Tensor:
        return ops.grow(stack, depth, u, v).square().sum()

    fn = torch.compile(loss, fullgraph=True, backend="aot_eager") if mode == "compiled" else loss
    got = torch.autograd.grad(fn(stack, depth, u, v), inputs)
    eye = [torch.eye(m.shape[1], dtype=torch.float64, device=DEVICE) for m in (u, v)]
    double = [m.replace({k: t.double() for k, t in m.factors().items()}) for m in (u, v)]
    want = reference.grow(stack, depth, double[0].left(eye[0]), double[1].left(eye[1])).square().sum()
    for g, w in zip(got, torch.autograd.grad(want, inputs), strict=True):
        assert (g - w).abs().max() <= 2e-5 * w.abs().max()


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch has no such tag")
@pytest.mark.parametrize("op", [library.grow, library.grow_backward])
def test_the_compiler_captures_no_cuda_graph_of_them(op: Any) -> None:
    assert torch.Tag.cudagraph_unsafe in op._opoverload.tags


def test_a_plan_is_made_once_for_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    u, v, depth = MAPS["diagonal"](), MAPS["prefix"](), rand(3, 2)
    results = []
    for n in range(2):
        if n:
            monkeypatch.setattr(
                "ligo_fast.compute.backend_triton.Plan.__init__", lambda *_: pytest.fail("made again")
            )
        stack = rand(2, 3, 3)
        y = ops.grow(stack, depth, u, v, precision="ieee")
        results.append(y)
        want = reference.grow(stack, depth, u.dense(), v.dense())
        assert (y - want).abs().max() <= 1e-5 * want.abs().max()
    assert not torch.equal(*results)


def test_a_plan_that_was_made_in_inference_mode_is_used_outside() -> None:
    u, v, depth = MAPS["diagonal"](), MAPS["prefix"](), rand(3, 2).requires_grad_()
    library._plans.clear()
    stack, grad, factors = rand(2, 3, 3), rand(3, 5, 5), [list(m.factors().values()) for m in (u, v)]
    words = *[library.encode(m)[0] for m in (u, v)], "ieee"  # type: ignore[index]
    with torch.inference_mode():
        inside = ops.grow(stack, depth, u, v, precision="ieee")
        grads = library.grow_backward(grad, stack, depth, *factors, *words, True)
    made = len(library._plans)
    outside = ops.grow(stack.clone(), depth, u, v, precision="ieee")
    assert torch.equal(inside, outside)
    (got,) = torch.autograd.grad(outside, [depth], grad)
    assert torch.equal(got, grads[1])
    again = library.grow_backward(grad, stack.clone(), depth.detach(), *factors, *words, True)
    assert all(torch.equal(a, b) for a, b in zip(again, grads, strict=True))
    assert len(library._plans) == made, "no plan was made again"


def test_threads_do_not_mix_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """One looks a plan up while another is between that and its launches."""
    u, v, depth = MAPS["diagonal"](), MAPS["prefix"](), rand(3, 2)
    stacks = [rand(2, 3, 3) for _ in range(4)]
    want = [ops.grow(stack, depth, u, v, precision="ieee") for stack in stacks]
    apply = Plan.apply

    def later(plan: Plan) -> None:
        time.sleep(0.01)
        apply(plan)

    monkeypatch.setattr(Plan, "apply", later)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda stack: ops.grow(stack, depth, u, v, precision="ieee"), stacks))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_one_factor_on_both_sides() -> None:
    """And after it, with the plan that was kept, two."""
    stack, depth = rand(2, 3, 3), rand(3, 2)
    shared, other = rand(4, 3).requires_grad_(), rand(4, 3).requires_grad_()
    for u, v in ((shared, shared), (shared, other)):
        leaves = list({id(t): t for t in (u, v)}.values())
        y = ops.grow(stack, depth, Dense(u), Dense(v), precision="ieee")
        got = torch.autograd.grad(y.square().sum(), leaves)
        want_y = reference.grow(stack, depth, u.double(), v.double())
        want = torch.autograd.grad(want_y.square().sum(), leaves)
        assert (y - want_y).abs().max() <= 1e-5 * want_y.abs().max()
        for g, w in zip(got, want, strict=True):
            assert (g - w).abs().max() <= 2e-5 * w.abs().max()


def test_a_plan_that_is_kept_does_not_keep_the_tensors() -> None:
    stack, maps = rand(2, 3, 3).requires_grad_(), (MAPS["prefix"](), MAPS["diagonal"]())
    depth = rand(3, 2).requires_grad_()
    y = ops.grow(stack, depth, *maps, precision="ieee")
    y.sum().backward()
    factors = [t for m in maps for t in m.factors().values()]
    storages = [StorageWeakRef(t.untyped_storage()) for t in (stack, y, depth, *factors)]
    gone = [weakref.ref(t) for t in (stack, y)]
    del stack, y, maps, depth, factors
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert all(ref.expired() for ref in storages)


def grown(n: int) -> object:
    """The key of the plan of a family of n rows, after growing it and pulling back."""
    stack, depth, c = rand(2, n, 3), rand(3, 2).requires_grad_(), rand(n, n).requires_grad_()
    ops.grow(stack, depth, PrefixDiagonal(c), Identity(3), precision="ieee").sum().backward()
    return list(library._plans)[-1]


def test_plans_that_were_not_used_for_longest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    library._plans.clear()
    monkeypatch.setattr(library, "MAX_PLANS", 3)
    first, second, third = (grown(n) for n in (3, 4, 5))
    assert grown(3) == first
    assert list(library._plans) == [second, third, first]
    fourth = grown(6)
    assert list(library._plans) == [third, first, fourth]


def test_plans_have_a_limit_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    library._plans.clear()
    keys = [grown(n) for n in (3, 40, 4)]
    each = [library._plans[k].table_bytes for k in keys]
    assert library.held() == sum(each) and each[1] > each[0] > 0
    monkeypatch.setattr(library, "MAX_BYTES", sum(each) - 1)
    assert list(library._plans) == keys
    last = grown(5)
    assert list(library._plans) == [*keys[1:], last]


def test_a_layout_that_is_refused_is_refused_again() -> None:
    whole, maps = torch.zeros(3, 10, 10, device=DEVICE), ("prefix", "prefix")
    for _ in range(2):
        with pytest.raises(lf.GrowthError, match="do not cover this: strides"):
            factors = [rand(2, 3)], [rand(2, 3)]
            library.write(rand(2, 3, 3), whole[:, ::2, ::2], rand(3, 2), maps, factors, "ieee")
    assert not whole.any()


def test_torch_writes_an_out_whose_neighbours_lie_apart_in_both_dimensions() -> None:
    u, v, depth, stack = MAPS["prefix"](), MAPS["dense"](), rand(3, 2), rand(2, 3, 3)
    whole = torch.full((3, 10, 10), torch.nan, device=DEVICE)
    ops.grow(stack, depth, u, v, out=whole[:, ::2, 1::2], precision="ieee")
    want = reference.grow(stack, depth, u.dense(), v.dense())
    assert (whole[:, ::2, 1::2] - want).abs().max() <= 1e-5 * want.abs().max()
    assert whole[:, 1::2].isnan().all()
    assert whole[:, :, ::2].isnan().all()


def test_plans_share_a_workspace() -> None:
    made = []
    for height in (9, 8):
        stack, depth = rand(2, height, 7), rand(3, 2)
        maps = PrefixDiagonal(rand(height, height)), PrefixDiagonal(rand(7, 7))
        ops.grow(stack, depth, *maps, precision="ieee")
        made.append(list(library._plans.values())[-1])
    assert made[0] is not made[1]
    assert made[0].workspace is made[1].workspace


def test_out_is_written_in_place_through_strides() -> None:
    u, v, depth, stack = MAPS["prefix"](), MAPS["dense"](), rand(3, 2), rand(2, 3, 3)
    whole = torch.full((3, 5, 9), torch.nan, device=DEVICE)
    version = whole._version
    ops.grow(stack, depth, u, v, out=whole[:, :, 2:7], precision="ieee")
    want = reference.grow(stack, depth, u.dense(), v.dense())
    assert (whole[:, :, 2:7] - want).abs().max() <= 1e-5 * want.abs().max()
    assert whole[:, :, :2].isnan().all()
    assert whole[:, :, 7:].isnan().all()
    assert whole._version > version


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_out_that_shares_memory_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGO_FAST_BACKEND", backend)
    u = PrefixDiagonal(rand(0, 3))
    whole = rand(3, 3, 3)
    before = whole.clone()
    with pytest.raises(lf.GrowthError, match="shares memory"):
        ops.grow(whole[:2], rand(2, 2), u, u, out=whole[1:])
    with pytest.raises(lf.GrowthError, match="shares memory"):
        ops.grow(rand(2, 3, 3), rand(3, 2), u, u, out=whole[:1].expand(3, 3, 3))
    assert torch.equal(whole, before)


def test_another_device_is_refused() -> None:
    u = PrefixDiagonal(rand(1, 3))
    with pytest.raises(lf.GrowthError, match="axis in: the factors are on meta"):
        ops.grow(rand(2, 3, 3), rand(2, 2), u, Dense(torch.empty(4, 3, device="meta")))
    with pytest.raises(lf.GrowthError, match="out is on meta"):
        ops.grow(rand(2, 3, 3), rand(2, 2), u, u, out=torch.empty(2, 4, 4, device="meta"))
