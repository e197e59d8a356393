"""A small model that is not where the large one is: in files, or on another device; what is read and held."""

import copy
import gc
import os
import shutil
import tempfile

import pytest
import torch
from distributed import spawn
from models import (
    TINY,
    build,
    build_wider,
    exact_rms_norm,
    grow_copy,
    loss_of,
    make_batch,
    on_meta,
    same,
    snapshot,
)
from torch.distributed.fsdp import fully_shard
from torch.profiler import ProfilerActivity, profile

import ligo_fast as lf
from ligo_fast.checkpoint.weights import WeightFiles
from ligo_fast.compute.backends import resolve_precision
from ligo_fast.fetch import FromDevice
from ligo_fast.models.tables import common_device_and_dtype


@pytest.fixture
def reads(monkeypatch):
    """The names of parameters in the order in which they are read from files."""
    names, read = [], WeightFiles.read
    monkeypatch.setattr(
        WeightFiles, "read", lambda self, name, *a: names.append(name) or read(self, name, *a)
    )
    return names


# the same numbers


def oracle(op, name, batch):
    """The factors' gradients by autograd through the functional form."""
    large = op.large
    loss = loss_of(lambda **b: torch.func.functional_call(large, op(), (), b), batch)
    return dict(
        zip(dict(op.named_parameters()), torch.autograd.grad(loss, list(op.parameters())), strict=True)
    )


def learning(op, name, release, parts=1, steps=3):
    """The factors' gradients of each step of learning, and the weights at the end."""
    opt, grads = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.05, release_grads=release), []
    for step in range(steps):
        for part in range(parts):
            loss_of(op.large, make_batch(name, seed=parts * step + part, dtype=torch.float64)).backward()
        opt.step()
        grads.append({n: p.grad.clone() for n, p in op.named_parameters()})
        opt.zero_grad()
    opt.close()
    return grads, snapshot(op.large)


def check_equal(name, small, away, folder, release, parts=1, **options):
    """Learning from files against autograd, in the first step, and against the small model in memory."""
    with exact_rms_norm():
        here = lf.GrowthOperator(small, grow_copy(small), seed=1, **options)
        exact = oracle(here, name, make_batch(name, dtype=torch.float64)) if parts == 1 else {}
        want, end = learning(here, name, False, parts)
        op = lf.GrowthOperator(away, grow_copy(small), seed=1, source=folder, **options)
        got, weights = learning(op, name, release, parts)
    for n, g in exact.items():
        torch.testing.assert_close(got[0][n], g, rtol=1e-9, atol=1e-11, msg=n)
    for a, b in zip(want, got, strict=True):
        for n, g in a.items():
            torch.testing.assert_close(b[n], g, rtol=1e-8, atol=1e-11, msg=n)
    for n, p in end.items():
        torch.testing.assert_close(weights[n], p, rtol=1e-9, atol=1e-11, msg=n)
    return op


@pytest.mark.parametrize("release", [True, False])
@pytest.mark.parametrize(
    "name", [n for n in TINY if n in ("gpt2-lm", "bert-mlm", "llama-tied", "qwen3-lm", "vit-class")]
)
def test_learning_is_that_from_memory_and_autograds(name, release, saved):
    small = build(name, dtype=torch.float64)
    folder, away = saved(small)
    check_equal(name, small, away, folder, release)


@pytest.mark.parametrize("per_layer", ["none", "source", "target"])
@pytest.mark.parametrize("form", ["prefix", "dense"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied-maps", "free-maps"])
def test_with_every_option(tie, form, per_layer, saved):
    small = build("gpt2-lm", dtype=torch.float64)
    folder, away = saved(small)
    check_equal("gpt2-lm", small, away, folder, True, tie=tie, form=form, per_layer=per_layer)


@pytest.mark.parametrize("method", ["ligo+stack", "ligo+zero", "tile+ligo", "pad+ligo", "aki+ligo"])
def test_with_one_learned_side(method, saved):
    small = build("gpt2-lm", dtype=torch.float64)
    folder, away = saved(small)
    check_equal("gpt2-lm", small, away, folder, True, method=method)


def test_micro_batches_add_up(saved):
    small = build("llama-lm", dtype=torch.float64)
    folder, away = saved(small)
    check_equal("llama-lm", small, away, folder, True, parts=3)


@pytest.mark.parametrize("method", ["net2net+stack", "tile+zero", "aki+interpolate"])
def test_fixed_maps_write_what_they_do_from_memory(method, saved):
    small = build("llama-lm")
    folder, away = saved(small)
    large = [lf.grow(small, width=32, depth=3, method="copy") for _ in range(2)]
    lf.GrowthOperator(small, large[0], method=method).apply_()
    lf.GrowthOperator(away, large[1], method=method, source=folder).apply_()
    for (n, p), q in zip(large[0].named_parameters(), large[1].parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-6, msg=n)


def test_noise_is_that_from_memory(saved):
    small = build("llama-lm")
    folder, away = saved(small)
    large = [lf.grow(small, width=32, depth=3, method="copy") for _ in range(2)]
    lf.GrowthOperator(small, large[0], method="net2net+stack", noise=0.1).apply_()
    lf.GrowthOperator(away, large[1], method="net2net+stack", noise=0.1, source=folder).apply_()
    for (n, p), q in zip(large[0].named_parameters(), large[1].parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-5, msg=n)


def test_a_bfloat16_model_is_as_exact_as_torch(saved):
    """Gradients against float64, beside those that torch finds in bfloat16."""
    small = build("llama-lm", dtype=torch.bfloat16)
    folder, away = saved(small)
    large = lf.grow(small, width=32, depth=3, method="copy")
    op = lf.GrowthOperator(away, large, seed=1, source=folder)
    assert op.precision == resolve_precision("auto", torch.bfloat16) == "bf16"
    opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.0, release_grads=True)
    given = {n: torch.randn(p.shape).to(p.dtype) for n, p in large.named_parameters()}
    for n, p in large.named_parameters():
        p.grad = given[n].clone()
        opt.release.layerwise.pull_back(p)
    found = {}
    for dtype in (torch.float64, torch.bfloat16):
        twin = copy.deepcopy(small).to(torch.float64)
        again = lf.GrowthOperator(twin, grow_copy(twin), seed=1)
        with torch.no_grad():
            for p, q in zip(again.parameters(), op.parameters(), strict=True):
                p.copy_(q)
        grown = cast_to(again, dtype)
        loss = sum((grown[n].to(dtype) * g.to(dtype)).sum() for n, g in given.items())
        found[dtype] = torch.autograd.grad(loss, list(again.parameters()))
    for (n, p), exact, rounded in zip(op.named_parameters(), *found.values(), strict=True):
        error, torchs = ((g - exact).norm() for g in (p.grad, rounded))
        assert error <= 3 * torchs, (n, error, torchs)


def cast_to(op, dtype):
    """The grown weights as plain torch computes them in a dtype."""
    grown = {}
    small = dict(op.small.named_parameters())
    for piece in op.pieces:
        stack = torch.stack([piece.small_slot.of(small[n]).to(dtype) for n in piece.small])
        u, v = (m.replace({}) if not m.factors() else m for m in (piece.rows, piece.cols))
        u, v = (m.replace({k: t.to(dtype) for k, t in m.factors().items()}) for m in (u, v))
        if piece.depth is not None:
            d = piece.depth.replace({k: t.to(dtype) for k, t in piece.depth.factors().items()})
            stack = d.left(stack.flatten(1)).view(-1, *stack.shape[1:])
        for name, x in zip(piece.large, stack, strict=True):
            grown[name] = v.left(u.left(x).t()).t().reshape(piece.large_shape)
    return grown


def test_another_device_is_copied_from_family_by_family(monkeypatch):
    """As with a GPU: here both devices are the CPU, and only the copy itself is left out."""
    copied, whole = [], FromDevice.whole
    small = build("llama-lm", dtype=torch.float64)
    large = grow_copy(small)
    monkeypatch.setattr(lf.GrowthOperator, "streams", True)
    monkeypatch.setattr(FromDevice, "whole", lambda self, n, t: copied.append(n) or whole(self, n, t.clone()))
    op = lf.GrowthOperator(small, large, seed=1)
    with exact_rms_norm():
        found, _ = learning(op, "llama-lm", True)
        monkeypatch.undo()
        here, _ = learning(lf.GrowthOperator(small, grow_copy(small), seed=1), "llama-lm", False)
    for a, b in zip(here, found, strict=True):
        for n, g in a.items():
            torch.testing.assert_close(b[n], g, rtol=1e-8, atol=1e-11, msg=n)
    assert sorted(set(copied)) == sorted(n for n, _ in small.named_parameters())
    assert len(copied) == 4 * len(set(copied))  # apply_, once before learning and after each step


class On:
    """Stands for a model on a device that need not be there."""

    def __init__(self, device):
        self.parameter = torch.nn.Parameter(torch.empty(2, device="meta"))
        self.device = torch.device(device)

    def parameters(self):
        where = self.device

        class Placed(torch.nn.Parameter):
            device = property(lambda _: where)
            is_meta = property(lambda _: where.type == "meta")

        return iter([self.parameter.detach().as_subclass(Placed)])


@pytest.mark.parametrize(
    ("small", "large", "stored", "device"),
    [
        ("cpu", "cuda:0", False, "cuda:0"),
        ("cpu", "cpu", False, "cpu"),
        ("cuda:1", "meta", False, "cuda:1"),
        ("meta", "cuda:0", True, "cuda:0"),
        ("meta", "meta", True, "cpu"),
        ("meta", "meta", False, "cpu"),  # without weights
        ("cuda:0", "cuda:1", False, None),
        ("cuda:0", "cpu", False, None),
        ("meta", "cpu", False, None),
    ],
)
def test_where_the_large_model_lives(small, large, stored, device):
    models = On(small), On(large)
    if device is None:
        with pytest.raises(lf.GrowthError, match="the source is on"):
            common_device_and_dtype(*models, stored=stored)
    else:
        assert common_device_and_dtype(*models, stored=stored)[0] == torch.device(device)


def test_both_on_the_meta_device(saved):
    small = build("llama-tied")
    folder, away = saved(small)
    op = lf.GrowthOperator(away, on_meta(grow_copy(small)), source=folder)
    op.apply_()
    assert {p.device.type for p in op.large.parameters()} == {"cpu"}
    assert all(p.is_meta for p in away.parameters())


# what is read, and when


def backward(op, reads, name="llama-lm"):
    """What one backward pass reads."""
    opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.05, release_grads=True)
    reads.clear()
    loss_of(op.large, make_batch(name)).backward()
    found = list(reads)
    reads.clear()
    opt.step()
    return found


def test_backward_reads_nothing_and_a_step_every_weight_once(saved, reads):
    small = build("llama-lm")
    folder, away = saved(small)
    op = lf.GrowthOperator(away, grow_copy(small), source=folder)
    assert sorted(reads) == sorted(n for n, _ in small.named_parameters())  # are they finite?
    assert backward(op, reads) == []
    assert sorted(reads) == sorted(n for n, _ in small.named_parameters())


def test_weights_of_fewer_bits_are_read_where_products_round_as_much(saved, reads):
    small = build("llama-lm", dtype=torch.bfloat16)
    folder, away = saved(small)
    assert backward(lf.GrowthOperator(away, grow_copy(small), source=folder), reads) == []
    assert backward(lf.GrowthOperator(away, grow_copy(small), precision="ieee", source=folder), reads)


def test_what_cannot_be_read_off_is_fetched(saved, reads):
    """Dense maps mix the old units; a D of rank one does not say what it mixed."""
    small = build("llama-lm")
    folder, away = saved(small)
    assert backward(lf.GrowthOperator(away, grow_copy(small), form="dense", source=folder), reads)
    op = lf.GrowthOperator(away, grow_copy(small), source=folder)
    with torch.no_grad():
        for n, p in op.named_parameters():
            if n.startswith("depth/"):
                p.fill_(0.5)
    assert len(backward(op, reads)) > len(list(small.parameters()))


def test_weights_written_by_others_are_not_read(saved, reads):
    small = build("llama-lm", dtype=torch.float64)
    folder, away = saved(small)
    found = []
    for streams in (False, True):
        op = lf.GrowthOperator(
            *((away,) if streams else (small,)), grow_copy(small), **({"source": folder} if streams else {})
        )
        opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.05, release_grads=True)
        with torch.no_grad():
            op.large.model.layers[1].mlp.up_proj.weight.mul_(2)
        reads.clear()
        loss_of(op.large, make_batch("llama-lm")).backward()
        opt.release.finish()
        found.append({n: p.grad for n, p in op.named_parameters()})
    assert {n.split(".")[-2] for n in reads} == {"up_proj"}
    for n, g in found[0].items():
        torch.testing.assert_close(found[1][n], g, rtol=1e-8, atol=1e-11)


def test_a_diagonal_near_zero_is_not_divided_by(saved, reads):
    small = build("gpt2-lm", dtype=torch.float64)
    folder, away = saved(small)
    found = []
    for model, source in ((small, None), (away, folder)):
        op = lf.GrowthOperator(model, grow_copy(small), source=source)
        with torch.no_grad():
            for n, p in op.named_parameters():
                if n.endswith("diag"):
                    p[1] = 0
        opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.05, release_grads=True)
        loss_of(op.large, make_batch("gpt2-lm", dtype=torch.float64)).backward()
        opt.release.finish()
        found.append({n: p.grad for n, p in op.named_parameters()})
    for n, g in found[0].items():
        torch.testing.assert_close(found[1][n], g, rtol=1e-8, atol=1e-11, msg=n)


# what is held


def held():
    """Bytes of all live tensors on the CPU, each memory once."""
    gc.collect()
    tensors = [
        t
        for t in gc.get_objects()
        if type(t) in (torch.Tensor, torch.nn.Parameter) and t.device.type == "cpu"
    ]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def peak_of(work):
    """The most that tensors made in `work` take at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        work()
    now = most = 0
    for event in sorted(prof.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_the_small_model_is_never_held_whole(saved):
    small = build("llama-lm", num_hidden_layers=6, intermediate_size=64, hidden_size=32)
    all_of_it = sum(p.nbytes for p in small.parameters())
    family = 6 * small.model.layers[0].mlp.up_proj.weight.nbytes
    folder, away = saved(small)
    peaks, between = [], []
    for model, source in ((small, None), (away, folder)):
        before = held()
        op = lf.GrowthOperator(model, grow_copy(small, 1, 8), source=source)
        opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.05, release_grads=True)
        loss = loss_of(op.large, make_batch("llama-lm"))
        peaks.append(peak_of(loss.backward))
        del loss
        opt.step()
        opt.zero_grad()
        between.append(held() - before)
        apply = peak_of(op.apply_)
        del op, opt
    # the small model that was there before is not counted
    assert abs(between[1] - between[0]) < 0.02 * all_of_it
    assert peaks[1] < peaks[0] + 0.05 * all_of_it
    assert apply < 4 * family < all_of_it


def test_where_op_itself_wants_the_small_model(saved):
    small = build("gpt2-lm")
    folder, away = saved(small)
    op = lf.GrowthOperator(away, grow_copy(small), source=folder)
    with pytest.raises(lf.GrowthError, match="where the large one is"):
        op()
    opts = [torch.optim.AdamW(m.parameters()) for m in (small, op.large)]
    with pytest.raises(lf.GrowthError, match="both models are"):
        lf.grow_optimizer(op, *opts)


# what else it goes with


def test_shards_with_an_index(saved):
    small = build("llama-lm", dtype=torch.float64)
    folder, away = saved(small, max_shard_size="4KB")
    assert len(list(folder.glob("*.safetensors"))) > 2 and not (folder / "model.safetensors").exists()
    check_equal("llama-lm", small, away, folder, True)


def test_an_operator_is_saved_and_loaded(saved, tmp_path):
    small = build("llama-lm")
    folder, away = saved(small)
    op = lf.GrowthOperator(away, grow_copy(small), seed=1, source=folder)
    lf.GrowthOptimizer(op, lr=0.05, release_grads=True)
    lf.save_operator(op, tmp_path / "operator.safetensors")
    again = lf.load_operator(tmp_path / "operator.safetensors", away, grow_copy(small), source=folder)
    want = snapshot(op.large)
    assert same(want, again.apply_())


def each_rank_reads_for_its_own_part(rank, size):
    small = build("llama-lm", dtype=torch.float64)
    with tempfile.TemporaryDirectory() as own:  # as every host has its own disk
        folder = shutil.copytree(os.environ["SAVED"], own, dirs_exist_ok=True)
        large = [build_wider("llama-lm", 3, torch.float64) for _ in range(2)]
        lf.GrowthOperator(small, large[0], seed=1).apply_()
        for layer in large[1].model.layers:
            fully_shard(layer)
        op = lf.GrowthOperator(on_meta(small), fully_shard(large[1]), seed=1, source=folder)
        assert op.streams and op.holder is None
        op.apply_()
        for (n, p), q in zip(large[0].named_parameters(), large[1].parameters(), strict=True):
            torch.testing.assert_close(q.full_tensor(), p, rtol=1e-10, atol=1e-12, msg=n)
        if rank == 1:  # all ranks hear of it
            os.utime(os.path.join(folder, "model.safetensors"), ns=(1, 1))
        with pytest.raises(lf.GrowthError, match=r"rank 1: .*has changed"):
            op.apply_()


def only_one_rank_has_a_folder(rank, size):
    small = build("llama-lm", dtype=torch.float64)
    large = fully_shard(build_wider("llama-lm", 3, torch.float64))
    with pytest.raises(
        lf.GrowthError, match=r"disagree about the source: rank 0: in files; rank 1: in memory"
    ):
        if rank:
            lf.GrowthOperator(small, large)
        else:
            lf.GrowthOperator(on_meta(small), large, source=os.environ["SAVED"])


def test_sharded(saved):
    folder, _ = saved(build("llama-lm", dtype=torch.float64))
    checks = [each_rank_reads_for_its_own_part, only_one_rank_has_a_folder]
    assert spawn(2, checks, settings={"SAVED": str(folder)}) == {c.__name__: "" for c in checks}
