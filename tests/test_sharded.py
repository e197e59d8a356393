"""Growth of sharded models on several processes: what one process does with the whole model, to rounding."""

import copy
import functools
import itertools
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed as dist
from distributed import spawn
from models import build, exact_rms_norm, loss_of, make_batch, on_meta
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ligo_fast as lf
from ligo_fast.maps import Dense, PrefixDiagonal
from ligo_fast.native import cpu
from ligo_fast.plan import Piece, Slot
from ligo_fast.processes import balance

LARGE = {
    "gpt2-lm": {"n_embd": 20, "n_head": 5, "n_inner": 26, "n_layer": 3},  # q|k|v and heads cut anywhere
    "llama-lm": {
        "hidden_size": 24, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4,
        "intermediate_size": 16, "num_hidden_layers": 3,
    },
    "bert-mlm": {  # ffn's second matrix grows more in columns
        "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 37, "num_hidden_layers": 3,
    },
    "vit-class": {
        "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17, "num_hidden_layers": 3,
    },
}  # fmt: skip


@functools.cache
def built(name, dtype):
    sizes = {"head_dim": 4} if name.startswith("llama") else {}
    return build(name, 0, dtype, **sizes), build(name, 1, dtype, **LARGE[name])


def models(name, dtype=torch.float64):
    """A small model and a large one, the same on every rank."""
    return copy.deepcopy(built(name, dtype))


def layers_of(model):
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


def fsdp(model, **options):
    for layer in layers_of(model):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def whole(model):
    """The parameters of a model, sharded or not, in one piece."""
    return {
        n: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for n, p in model.named_parameters()
    }


def check_same(model, reference, exact=False):
    reference = dict(reference.named_parameters())
    for n, p in whole(model).items():
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-10, "atol": 1e-12}
        torch.testing.assert_close(p, reference[n].detach(), msg=lambda m, n=n: f"{n}: {m}", **tolerance)


def check_apply(name, shard, exact=False, dtype=torch.float64, **options):
    """apply_ of a sharded model against that of a whole one."""
    small, large = models(name, dtype)
    _, reference = models(name, dtype)
    lf.GrowthOperator(small, reference, **options).apply_()
    lf.GrowthOperator(small, shard(large), **options).apply_()
    check_same(large, reference, exact)


def check_learning(name, shard, places, place, tolerance=1e-9, process_group=None, **options):
    """Three steps on a sharded model, each of `places` data-parallel ranks with a batch of its own."""
    small, large = models(name)
    _, reference = models(name)
    with exact_rms_norm():
        op = lf.GrowthOperator(small, shard(large), **options)
        opt = lf.GrowthOptimizer(
            op, torch.optim.SGD, lr=0.1, momentum=0.9, max_grad_norm=0.5, process_group=process_group
        )
        one = lf.GrowthOperator(small, reference, **options)
        one_opt = lf.GrowthOptimizer(one, torch.optim.SGD, lr=0.1, momentum=0.9, max_grad_norm=0.5)
        for step in range(3):
            batches = [make_batch(name, 10 * step + k, torch.float64) for k in range(places)]
            loss_of(large, batches[place]).backward()
            opt.step()
            for b in batches:  # the loss is float32 in part: dividing it would not be exact
                loss_of(reference, b).backward()
            for p in reference.parameters():
                p.grad /= places
            one_opt.step()
            wanted = dict(one.named_parameters())
            for n, p in op.named_parameters():
                torch.testing.assert_close(
                    p.grad, wanted[n].grad, rtol=tolerance, atol=1e-12, msg=lambda m, n=n: f"{n}: {m}"
                )
            assert sum(bool(p.grad.abs().max() > 0) for p in wanted.values()) > len(wanted) // 2
            opt.zero_grad()
            one_opt.zero_grad()
    check_same(large, reference)


OPTIONS = [
    {"tie": tie, "form": form, "per_layer": level}
    for tie in (True, False)
    for form in ("prefix", "dense")
    for level in ("none", "source", "target")
]


def learned_maps(rank, size):
    for name in LARGE:
        check_apply(name, fsdp)
    for options in OPTIONS if size == 3 else ():
        check_apply("gpt2-lm", fsdp, **options)


def fixed_maps_bit_for_bit(rank, size):
    for method in ("stack", "net2net+interpolate", "aki", "random"):
        for dtype in (torch.float32, torch.float64):
            check_apply("gpt2-lm", fsdp, exact=True, dtype=dtype, method=method)
    check_apply("gpt2-lm", fsdp, method="pad+zero")  # its new units are means: products
    check_apply("gpt2-lm", fsdp, method="net2net+stack", noise=0.1)


def selections_are_one_compiled_call(rank, size):
    small, large = models("gpt2-lm", torch.float32)
    op = lf.GrowthOperator(small, fsdp(large), method="net2net+stack")
    op.apply_()
    assert cpu.why_not() or not op._execution.compiled.left_to_torch()


def learning(rank, size):
    for name in LARGE:
        check_learning(name, fsdp, size, rank)
    for options in OPTIONS[1::4] if size == 3 else ():
        check_learning("gpt2-lm", fsdp, size, rank, **options)


def frozen_factors(rank, size):
    """What is frozen stays, the others' gradients are a whole model's; with rows computed elsewhere, too."""
    for which, lent in itertools.product(("depth/", "width/", "width/ffn"), (False, True)):
        operators = []
        for shard in (lambda model: model, fsdp):
            small, large = models("gpt2-lm")
            op = lf.GrowthOperator(small, shard(large))
            for name, p in op.named_parameters():
                p.requires_grad_(not name.startswith(which))
            with rows_lent() if lent else nullcontext():
                opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.1)
                loss_of(large, make_batch("gpt2-lm")).backward()
                opt.step()
            operators.append(op)
        wanted, got = (dict(op.named_parameters()) for op in operators)
        assert any(p.grad is not None for p in wanted.values())
        for name, p in got.items():
            assert (p.grad is None) == name.startswith(which), name
            torch.testing.assert_close(p.detach(), wanted[name].detach(), rtol=1e-8, atol=1e-12, msg=name)
    for name, p in op.named_parameters():
        p.requires_grad_(name.startswith("depth/") or rank > 0)
    try:
        lf.GrowthOptimizer(op, lr=0.1)
    except lf.GrowthError as error:
        assert "disagree about the learned factors" in str(error)
    else:
        raise AssertionError("ranks that learn other factors were not noticed")


def columns(model):
    """Sharded along the last dimension, which cuts q|k|v and the residual stream."""
    return fsdp(model, shard_placement_fn=lambda p: Shard(p.dim() - 1))


def spread(model):
    """DTensors along the last dimension, of unequal sizes if need be (FSDP wants equal ones there)."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            placed = distribute_tensor(p.detach(), mesh, [Shard(p.dim() - 1)])
            module.register_parameter(name, torch.nn.Parameter(placed))
    model.tie_weights()
    return model


def uneven_columns(rank, size):
    for options in OPTIONS[::3]:
        check_apply("gpt2-lm", spread, **options)
    check_apply("gpt2-lm", spread, exact=True, method="net2net+stack")
    check_apply("gpt2-lm", spread, method="net2net+stack", noise=0.1)


def sharded_columns(rank, size):
    check_apply("gpt2-lm", columns)
    check_apply("gpt2-lm", columns, exact=True, method="net2net+stack")
    check_learning("gpt2-lm", columns, size, rank)


def tensor_parallel(model, mesh):
    colwise = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    rowwise = ("self_attn.o_proj", "mlp.down_proj")
    for layer in layers_of(model):
        plan = {n: ColwiseParallel() for n in colwise} | {n: RowwiseParallel() for n in rowwise}
        parallelize_module(layer, mesh, plan)
    return model


def tensor_parallel_alone(rank, size):
    mesh = init_device_mesh("cpu", (size,))
    check_apply("llama-lm", lambda m: tensor_parallel(m, mesh))
    check_learning("llama-lm", lambda m: tensor_parallel(m, mesh), 1, 0)


def mesh_of_four(rank, size):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))

    def both(model):
        return fsdp(tensor_parallel(model, mesh["tp"]), mesh=mesh["dp"])

    check_apply("llama-lm", both)
    check_apply("llama-lm", both, exact=True, method="net2net+stack")
    check_learning("llama-lm", both, 2, rank // 2)


def replicas_of_shards(rank, size):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    check_apply("gpt2-lm", lambda m: fsdp(m, mesh=mesh))
    for name in ("gpt2-lm", "bert-mlm"):
        check_learning(name, lambda m: fsdp(m, mesh=mesh), 4, rank)


def tensor_parallel_with_data_parallel_factors(rank, size):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    check_learning(
        "llama-lm", lambda m: tensor_parallel(m, mesh["tp"]), 2, rank // 2, process_group=dist.group.WORLD
    )


def a_target_on_the_meta_device(rank, size):
    small, reference = models("gpt2-lm")
    large = on_meta(reference)
    op = lf.GrowthOperator(small, fsdp(large))
    lf.GrowthOperator(small, reference).apply_()
    check_same(op.apply_(), reference)
    tied = large.lm_head.weight is large.transformer.wte.weight
    assert tied and not any(p.is_meta for p in large.parameters())


def a_source_on_one_rank_only(rank, size):
    small, large = models("gpt2-lm")
    _, reference = models("gpt2-lm")
    one = lf.GrowthOptimizer(lf.GrowthOperator(small, reference), torch.optim.SGD, lr=0.1)
    op = lf.GrowthOperator(small if rank == 1 else on_meta(small), fsdp(large))
    opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.1)
    batch = make_batch("gpt2-lm", dtype=torch.float64)
    for model, optimizer in ((large, opt), (reference, one)):
        loss_of(model, batch).backward()
        optimizer.step()
    check_same(large, reference)


def a_sharded_source(rank, size):
    small, large = models("gpt2-lm")
    _, reference = models("gpt2-lm")
    lf.GrowthOperator(small, reference).apply_()
    lf.GrowthOperator(fsdp(small), fsdp(large)).apply_()
    check_same(large, reference)


def the_next_forward_pass_sees_the_new_weights(rank, size):
    small, large = models("gpt2-lm")
    _, reference = models("gpt2-lm")
    op, batch = lf.GrowthOperator(small, fsdp(large)), make_batch("gpt2-lm", dtype=torch.float64)
    with torch.no_grad():
        loss_of(large, batch)  # leaves the root's parameters gathered
        op.apply_()
        lf.GrowthOperator(small, reference).apply_()
        torch.testing.assert_close(loss_of(large, batch), loss_of(reference, batch))


SENDING = (
    "all_reduce",
    "all_gather",
    "broadcast",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "isend",
)


@contextmanager
def bytes_sent():
    """A list to which every collective, and every message, adds how many bytes this process gives to it."""
    sent = []

    def counted(original):
        def call(t, *args, **options):
            sent.append((args[0] if isinstance(t, list) else t).nbytes)
            return original(t, *args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in SENDING:
            patch.setattr(dist, name, counted(getattr(dist, name)))
        yield sent


def with_gradients(model):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model


def no_large_parameter_is_gathered(rank, size):
    """Only the factors' gradients and the control messages leave a process."""
    small, large = models("gpt2-lm")
    op = lf.GrowthOperator(small, with_gradients(fsdp(large)))
    for _ in range(2):  # the first time the ranks say what each has to do
        with bytes_sent() as growing:
            op.apply_()
        with bytes_sent() as pulling:
            op.pullback()
    assert sum(growing) <= 8
    assert sum(pulling) == sum(p.nbytes for p in op.parameters()) + 8


@contextmanager
def rows_lent():
    """Every row is worth sending; otherwise none of models as small as these is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance, "FLOPS_PER_BYTE", 0)
        patch.setattr(balance, "FEWEST_FLOPS", 0)
        yield


def uneven_work_is_shared(rank, size):
    """The last ranks have the new units' rows: they let the others compute some, and all agree on which."""
    for name in LARGE:
        small, large = models(name)
        op = lf.GrowthOperator(small, with_gradients(fsdp(large)))
        with rows_lent():
            for pulling in (False, True):
                tasks = balance.balance(op.team, op._execution.bound.parts, pulling, op.dtype, grown=pulling)
                every = [None] * size
                dist.all_gather_object(every, tasks)
                assert tasks and all(t == tasks for t in every)
                assert any(t.columns for t in tasks) or name != "bert-mlm"
            with bytes_sent() as growing:
                op.apply_()
            with bytes_sent() as pulling:
                op.pullback()
        small_bytes = sum(p.nbytes for p in small.parameters())
        sent = torch.tensor([sum(growing), sum(pulling) - sum(p.nbytes for p in op.parameters())])
        dist.all_reduce(sent)
        assert all(size * 24 < n < 2 * small_bytes for n in sent.tolist())


def lent_rows_in_bfloat16(rank, size):
    """Rows from elsewhere are float32 products, where the others take the matrix units if there are some."""
    models = [
        build(
            "bert-mlm", n, torch.bfloat16, hidden_size=h, num_attention_heads=h // 16, intermediate_size=4 * h
        )
        for n, h in ((0, 64), (1, 96), (1, 96))
    ]
    with rows_lent():
        op = lf.GrowthOperator(models[0], fsdp(models[1]))
        op.apply_()
        assert op._execution.tasks[op.team, False]
    lf.GrowthOperator(models[0], models[2]).apply_()
    wanted = dict(models[2].named_parameters())
    for n, p in whole(models[1]).items():
        torch.testing.assert_close(
            p, wanted[n].detach(), rtol=2**-7, atol=1e-4, msg=lambda m, n=n: f"{n}: {m}"
        )


def lent_rows(rank, size):
    """All of it again, with rows computed elsewhere."""
    with rows_lent():
        for name in LARGE if size == 2 else ("gpt2-lm", "bert-mlm"):
            check_learning(name, fsdp, size, rank)
        check_learning(
            "gpt2-lm", columns if size == 2 else fsdp, size, rank, form="dense", per_layer="source"
        )
        for options in OPTIONS[::4]:
            check_apply("gpt2-lm", spread, **options)


def placements_that_differ(rank, size):
    """A gradient that is a copy on one rank and a part of a sum on the other: nobody waits for ever."""
    wanted = []
    for shard in (whole_model, replicated_norms):
        small, large = models("bert-mlm")
        with rows_lent():
            op = lf.GrowthOperator(small, with_gradients(shard(large)))
            for n, p in large.named_parameters():
                if "LayerNorm" in n and shard is whole_model:
                    p.grad *= 1.5  # half of the copy, and the part
                elif "LayerNorm" in n and rank:
                    p.grad = DTensor.from_local(p.grad.to_local(), p.device_mesh, [Partial()])
            op.pullback()
        wanted.append(torch.cat([p.grad.flatten() for p in op.parameters()]))
    torch.testing.assert_close(*wanted, rtol=1e-9, atol=1e-12)
    op = lf.GrowthOperator(small if rank else on_meta(small), large)
    with pytest.raises(lf.GrowthError, match=r"the ranks disagree about the share .*LayerNorm"):
        op.pullback()


def replicated_norms(model):
    """DTensors: rows of matrices and of biases, copies of norms."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            how = Replicate() if isinstance(module, torch.nn.LayerNorm) else Shard(0)
            placed = distribute_tensor(p.detach(), mesh, [how])
            module.register_parameter(name, torch.nn.Parameter(placed))
    model.tie_weights()
    return model


def lent_rows_on_a_mesh(rank, size):
    with rows_lent():
        mesh_of_four(rank, size)
        replicas_of_shards(rank, size)
        tensor_parallel_with_data_parallel_factors(rank, size)


def lent_rows_without_gradients(rank, size):
    """A piece without any gradient, and one with some, on all ranks: nobody waits for its rows."""
    with rows_lent():
        got, wanted = (gradients("llama-lm", shard, torch.float64, without) for shard in (fsdp, whole_model))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def without(name):
    return "up_proj" in name or "layers.0." in name


def whole_model(model):
    return model


def gradients(name, shard, dtype, left_out=lambda name: False):
    """The factors' gradients one after the other, before apply_ and after it."""
    small, large = (m.to(dtype) for m in models(name, torch.float32))
    op = lf.GrowthOperator(small, with_gradients(shard(large)))
    for n, p in large.named_parameters():
        p.grad = None if left_out(n) else p.grad
    op.pullback()
    op.apply_()
    op.pullback()
    return torch.cat([p.grad.flatten() for p in op.parameters()])


def lent_rows_in_float32(rank, size):
    """Beside pieces that the compiled selection does on some ranks only."""
    exact = gradients("bert-mlm", whole_model, torch.float64)
    with rows_lent():
        errors = [
            (gradients("bert-mlm", shard, torch.float32) - exact).norm() for shard in (fsdp, whole_model)
        ]
    assert errors[0] <= 3 * errors[1] <= 1e-4 * exact.norm()


def grown_weights_are_read_in_learning(rank, size):
    """The pull-back takes the short way on sharded models, too."""
    small, large = models("gpt2-lm")
    op = lf.GrowthOperator(small, fsdp(large))
    op.apply_()
    execution = op._execution
    assert execution.written.holds(execution.bound.involved())
    loss_of(large, make_batch("gpt2-lm", dtype=torch.float64)).backward()
    assert execution.written.holds(execution.bound.involved())
    with torch.no_grad():
        next(large.parameters()).to_local().add_(1)
    assert not execution.written.holds(execution.bound.involved())


def optimizer_states(rank, size):
    """Moments of the small model's AdamW, grown into an AdamW of sharded parameters."""
    for options in ({}, {"method": "net2net+stack"}):
        for policy in ("gradient", "map", "keep"):
            small, large = models("gpt2-lm")
            _, reference = models("gpt2-lm")
            opts = [torch.optim.AdamW(m.parameters()) for m in (small, fsdp(large), reference)]
            loss_of(small, make_batch("gpt2-lm", dtype=torch.float64)).backward()
            opts[0].step()
            for model, opt in ((large, opts[1]), (reference, opts[2])):
                op = lf.GrowthOperator(small, model, **options)
                op.apply_()
                lf.grow_optimizer(op, opts[0], opt, policy=policy)
            wanted = opts[2].state
            for p, q in zip(large.parameters(), reference.parameters(), strict=True):
                assert opts[1].state[p].keys() == wanted[q].keys()
                for key, t in opts[1].state[p].items():
                    got = t.full_tensor() if hasattr(t, "full_tensor") else t
                    torch.testing.assert_close(got, wanted[q][key], rtol=1e-10, atol=1e-14)
            loss_of(large, make_batch("gpt2-lm", dtype=torch.float64)).backward()
            opts[1].step()


def grow_and_learn_in_one_call(rank, size):
    """The whole way from a small model to a sharded large one."""
    small, large = models("gpt2-lm")
    _, reference = models("gpt2-lm")
    batches = [make_batch("gpt2-lm", s, torch.float64) for s in range(2)]
    for target in (fsdp(large, reshard_after_forward=True), reference):
        options = {"optimizer": torch.optim.SGD, "lr": 0.1}
        assert lf.grow(small, target=target, data=batches, steps=3, **options) is target
    check_same(large, reference)


def a_look_at_the_loss_before(rank, size):
    """Before the operator, the optimizer or a step: FSDP keeps the root gathered after a forward pass."""
    batch = make_batch("gpt2-lm", dtype=torch.float64)
    results = []
    for looks in (True, False):
        small, large = models("gpt2-lm")
        fsdp(large)

        def look(large=large, looks=looks):
            if looks:
                with torch.no_grad():
                    loss_of(large, batch)

        look()
        op = lf.GrowthOperator(small, large)
        look()
        opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.1)
        look()
        loss_of(large, batch).backward()
        opt.step()
        look()
        op.apply_()
        results.append(whole(large))
    assert all(torch.equal(results[0][n], p) for n, p in results[1].items())


def sharded_models_are_not_certified(rank, size):
    small, large = models("gpt2-lm")
    lf.GrowthOperator(small, fsdp(large)).apply_()
    with pytest.raises(lf.GrowthError, match=r"wte.* of the target is spread over processes"):
        lf.certify(small, large, make_batch("gpt2-lm", dtype=torch.float64))


COMMON = [
    learned_maps,
    fixed_maps_bit_for_bit,
    learning,
    frozen_factors,
    uneven_work_is_shared,
    lent_rows,
    lent_rows_without_gradients,
    lent_rows_in_float32,
]
CHECKS = {
    2: [
        *COMMON,
        sharded_columns,
        tensor_parallel_alone,
        a_target_on_the_meta_device,
        a_source_on_one_rank_only,
        a_sharded_source,
        the_next_forward_pass_sees_the_new_weights,
        no_large_parameter_is_gathered,
        grown_weights_are_read_in_learning,
        selections_are_one_compiled_call,
        optimizer_states,
        grow_and_learn_in_one_call,
        a_look_at_the_loss_before,
        sharded_models_are_not_certified,
        lent_rows_in_bfloat16,
        placements_that_differ,
    ],
    3: [*COMMON, uneven_columns],
    4: [
        mesh_of_four,
        replicas_of_shards,
        tensor_parallel_with_data_parallel_factors,
        lent_rows_on_a_mesh,
    ],
}


def test_offers_even_out_the_loads():
    offers = [[], [balance.Offer(0, 10, 210, 1e9, 1.0, False)]]
    (task,) = balance.divide([1e11, 3e11], offers)
    assert (task.owner, task.helper, task.start, task.stop) == (1, 0, 110, 210)


def test_shared_products():
    """Matrices (4, 8) to (6, 16) in rows 0-3 and 3-6: 3 old units, and 1 with the new."""
    slot, hidden, inner = Slot(1), PrefixDiagonal(torch.ones(2, 4)), PrefixDiagonal(torch.ones(8, 8))
    whole = Piece("w", ["a", "b"], ["c", "d", "e"], slot, slot, Dense(torch.ones(3, 2)), hidden, inner)
    windows = [((0, 3), (0, 16)), ((3, 6), (0, 16))]
    assert not balance.shared(0, whole, windows, False, 4)  # too small to be worth a message
    with rows_lent():
        tasks = balance.shared(0, whole, windows, False, 4)
        assert not balance.shared(0, whole, windows, True, 4)  # nothing is learned
        assert not balance.shared(0, whole, [((0, 6), (0, 8)), ((0, 6), (8, 16))], False, 4)
    assert all((t.start, t.stop, t.flip) == (8, 16, True) for t in tasks)
    assert [(t.owner, t.helper, t.columns) for t in tasks] == [(0, 0, (0, 3)), (1, 0, (0, 3)), (1, 1, (3, 4))]


@pytest.fixture(scope="module")
def results():
    """What went wrong, by number of processes and check; the processes are started once for all checks."""
    return {size: spawn(size, checks) for size, checks in CHECKS.items()}


@pytest.mark.parametrize(
    "size, check", [(n, c) for n, cs in CHECKS.items() for c in cs], ids=lambda v: getattr(v, "__name__", v)
)
def test_on_processes(results, size, check):
    if problem := results[size][check.__name__]:
        pytest.fail(problem, pytrace=False)
