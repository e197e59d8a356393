"""Several processes: factors' gradients are summed, one error for all, checkpoints for any number."""

import copy
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from distributed import Killed, spawn
from models import loss_of, make_batch, same, snapshot
from test_sharded import bytes_sent, check_learning, check_same, fsdp, models, rows_lent
from torch.nn.parallel import DistributedDataParallel as DDP

import ligo_fast as lf

NAME = "gpt2-lm"


def train(model, opt, steps, rank=0, sync=True):
    """Some steps; which batches says the rank."""
    for step in steps:
        batch = make_batch(NAME, 10 * step + rank, torch.float64)
        if sync:
            loss_of(model, batch).backward()
        else:
            with model.no_sync():
                loss_of(model, batch).backward()
        opt.step()
        opt.zero_grad()


def factors_equal_one_process_and_each_other(rank, size):
    """Without DDP, with it, with it but without its own all-reduce, and with gradients that are released."""

    def bare(model):
        return model

    check_learning(NAME, bare, size, rank, process_group=dist.group.WORLD)
    check_learning("llama-lm", bare, size, rank, process_group=dist.group.WORLD)
    learned = []
    ways = ((bare, True, False), (DDP, True, False), (DDP, False, False), (bare, True, True))
    for wrap, sync, release in ways:
        small, large = models(NAME)
        model = wrap(large)
        op = lf.GrowthOperator(small, model)
        opt = lf.GrowthOptimizer(
            op, lr=1e-2, max_grad_norm=0.5, process_group=dist.group.WORLD, release_grads=release,
            eps=1e-6,  # the keys' bias has no gradient but rounding errors, which are divided by this
        )  # fmt: skip
        train(model, opt, range(3), rank, sync)
        learned.append(large)
        theirs = [torch.empty_like(large.transformer.wpe.weight) for _ in range(size)]
        dist.all_gather(theirs, large.transformer.wpe.weight.detach())
        assert all(torch.equal(t, theirs[0]) for t in theirs)
    for large in learned[1:]:
        check_same(large, learned[0])
    small, large = models(NAME)
    op = lf.GrowthOperator(small, fsdp(large))
    refused("needs whole gradients", lambda: lf.GrowthOptimizer(op, release_grads=True), rank)


def one_all_reduce_of_factors(rank, size):
    small, large = models(NAME)
    op = lf.GrowthOperator(small, large)
    opt = lf.GrowthOptimizer(op, process_group=dist.group.WORLD)
    loss_of(large, make_batch(NAME, dtype=torch.float64)).backward()
    volume = lf.traffic(op)
    with bytes_sent() as sent:
        opt.step()
    assert sorted(sent) == [8, 8, 8, volume.factors]  # "I can go on": a step, the sum, and writing
    assert volume.factors == 8 * sum(p.numel() for p in op.parameters())
    assert volume.model == 8 * sum(p.numel() for p in large.parameters())
    assert volume.ratio == volume.factors / volume.model


def gradients_that_were_there_stay(rank, size):
    """`pullback` adds, and adds the other ranks' once."""
    small, large = models(NAME)
    op = lf.GrowthOperator(small, fsdp(large))
    loss_of(large, make_batch(NAME, dtype=torch.float64)).backward()
    op.pullback()
    first = [p.grad.clone() for p in op.parameters()]
    op.pullback()
    for p, g in zip(op.parameters(), first, strict=True):
        torch.testing.assert_close(p.grad, 2 * g, rtol=1e-12, atol=0)


def refused(text, call, rank):
    """A call raises a GrowthError on this rank, too."""
    with pytest.raises(lf.GrowthError, match=text):
        call()


def ranks_that_disagree(rank, size):
    def build(shard=True, change=None, **options):
        small, large = models(NAME)
        with torch.no_grad():
            if change == "weights" and rank == 1:
                small.transformer.wpe.weight[0, 0] += 1
            if change == "nan" and rank == 1:
                small.transformer.wpe.weight[0, 0] = float("nan")
        op = lf.GrowthOperator(small, fsdp(large) if shard else large, **options)
        if change == "factors" and rank == 1:
            with torch.no_grad():
                next(op.parameters()).add_(1)
        if not shard:
            lf.GrowthOptimizer(op, process_group=dist.group.WORLD)

    method = ("ligo", "ligo+stack")[rank]
    for shard in (True, False):
        refused("disagree about the seed: rank 0: 0; rank 1: 1", lambda s=shard: build(s, seed=rank), rank)
        refused("method: rank 0: ligo; rank 1: ligo.stack", lambda s=shard: build(s, method=method), rank)
        refused("disagree about the maps", lambda s=shard: build(s, depth_noise=0.01 * rank), rank)
        refused("disagree about the source's weights", lambda s=shard: build(s, "weights"), rank)
    refused("disagree about the maps", lambda: build(False, "factors"), rank)
    refused(
        "parameter transformer.wpe.weight of the source has 1 values that are NaN",
        lambda: build(True, "nan"),
        rank,
    )
    wrong = {"method": "ligo" if rank == 0 else "lego"}
    refused("rank 1: .*lego", lambda: build(**wrong), rank)


def nothing_is_half_written(rank, size):
    """A parameter was replaced on one rank: no rank writes."""
    small, large = models(NAME)
    op = lf.GrowthOperator(small, fsdp(large))
    op.apply_()
    before = {n: p.to_local().clone() for n, p in large.named_parameters()}
    last = large.transformer.h[2].mlp
    held = last.c_proj.weight
    if rank == 1:
        last.c_proj.weight = torch.nn.Parameter(held.detach().float())
    with torch.no_grad():
        next(op.parameters()).add_(1)
    refused(r"rank 1: parameter transformer.h.2.mlp.c_proj.weight is now .*float32", op.apply_, rank)
    if rank == 1:
        last.c_proj.weight = torch.nn.Parameter(held.detach().to_local())
    refused(r"rank 1: parameter transformer.h.2.mlp.c_proj.weight is now", op.apply_, rank)
    last.c_proj.weight = held
    for n, p in large.named_parameters():
        assert torch.equal(before[n], p.to_local()), n
    op.apply_()
    assert not torch.equal(before["transformer.wte.weight"], large.transformer.wte.weight.to_local())


def a_missing_shard(rank, size):
    small, large = models(NAME)
    fsdp(large)
    weight = large.transformer.h[0].mlp.c_fc.weight
    if rank == 1:
        weight._local_tensor = weight._local_tensor[:0]
    refused(r"rank 1: .*c_fc.weight.*\[0, 26\]", lambda: lf.GrowthOperator(small, large), rank)


def nobody_has_the_source(rank, size):
    small, large = models(NAME)
    with torch.device("meta"):
        small = type(small)(small.config).double()
    refused("meta device on every rank", lambda: lf.GrowthOperator(small, fsdp(large)), rank)


def a_sharded_target_that_keeps_nothing(rank, size):
    small, large = models(NAME)
    with torch.device("meta"):
        large = type(large)(large.config).double()
    refused("is initialised", lambda: lf.GrowthOperator(small, fsdp(large), method="random"), rank)


def sharded_after_the_operator(rank, size):
    small, large = models(NAME)
    op = lf.GrowthOperator(small, large)
    fsdp(large)
    refused("made for not sharded", op.apply_, rank)


def no_gradient_on_one_rank(rank, size):
    small, large = models(NAME)
    op = lf.GrowthOperator(small, large)
    opt = lf.GrowthOptimizer(op, process_group=dist.group.WORLD)
    if rank == 0:
        loss_of(large, make_batch(NAME, dtype=torch.float64)).backward()
    before = snapshot(large)
    refused("rank 1: no parameter of the large model has a gradient", opt.step, rank)
    assert same(before, large)


def an_operator_copies(rank, size):
    small, large = models(NAME)
    op = lf.GrowthOperator(small, large)
    lf.GrowthOptimizer(op, process_group=dist.group.WORLD)
    twin = copy.deepcopy(op)
    assert twin.team is op.team
    twin.apply_()


def a_rank_that_does_not_answer(rank, size):
    os.environ["LIGO_FAST_TIMEOUT"] = "1"
    small, large = models(NAME)
    op = lf.GrowthOperator(small, fsdp(large))
    before = {n: p.to_local().clone() for n, p in large.named_parameters()}
    if rank == 0:
        start = time.perf_counter()
        refused("did not answer within 1 s", op.apply_, rank)
        assert time.perf_counter() - start < 10
        assert all(torch.equal(before[n], p.to_local()) for n, p in large.named_parameters())
    else:
        time.sleep(3)
    os.environ["LIGO_FAST_TIMEOUT"] = "20"


def a_killed_rank(rank, size):
    small, large = models(NAME)
    op = lf.GrowthOperator(small, fsdp(large))
    op.apply_()
    if rank == 1:
        raise Killed
    before = {n: p.to_local().clone() for n, p in large.named_parameters()}
    refused("another rank failed", op.apply_, rank)
    assert all(torch.equal(before[n], p.to_local()) for n, p in large.named_parameters())


def a_rank_killed_before_it_sends_rows(rank, size):
    """While they grow, after they have agreed: who waits for its rows gives up."""
    small, large = models(NAME)
    op = lf.GrowthOperator(small, fsdp(large))
    with rows_lent():
        op.apply_()
        if rank == 0:
            op._execution._loan = die
        refused("another rank failed", op.apply_, rank)


def die(*args, **options):
    raise Killed


def folder(name):
    return os.path.join(os.environ["CHECKPOINTS"], name)


ADAM = {"lr": 1e-2, "eps": 1e-3}  # a smaller eps would make much of gradients that are rounding errors


def learning_state():
    small, large = models(NAME)
    op = lf.GrowthOperator(small, fsdp(large))
    return large, op, lf.GrowthOptimizer(op, **ADAM)


def saves_a_checkpoint(rank, size):
    large, _, opt = learning_state()
    dcp.save({"model": large, "growth": lf.GrowthState(opt)}, checkpoint_id=folder("start"))
    train(large, opt, range(2))
    dcp.save({"model": large, "growth": lf.GrowthState(opt)}, checkpoint_id=folder("two"))


def continues_it_on_another_number(rank, size):
    """The same batch on every rank: the number of ranks changes nothing but rounding."""
    small, reference = models(NAME)
    one = lf.GrowthOptimizer(lf.GrowthOperator(small, reference), **ADAM)
    for start, name in ((0, "start"), (2, "two")):
        large, op, opt = learning_state()
        if name == "two":
            train(reference, one, range(2))
        with torch.no_grad():
            for p in op.parameters():
                p.zero_()
        opt.param_groups[0]["lr"] = 0.5
        dcp.load({"model": large, "growth": lf.GrowthState(opt)}, checkpoint_id=folder(name))
        assert opt.param_groups[0]["lr"] == 1e-2
        check_same(large, reference)
        train(large, opt, range(start, start + 2))
        if name == "two":
            train(reference, one, range(2, 4))
            check_same(large, reference)


def an_overflow_on_one_rank_skips_the_step_of_all(rank, size):
    """Three scaled steps of which one overflows on rank 0 are the two others, however the model is held."""
    for shard, release, clip in ((None, False, True), (None, True, False), (fsdp, False, False)):
        learned = []
        for scale in (None, 2.0**10):
            small, large = models(NAME)
            op = lf.GrowthOperator(small, shard(large) if shard else large)
            group = None if shard else dist.group.WORLD
            opt = lf.GrowthOptimizer(
                op, lr=1e-2, max_grad_norm=0.5, process_group=group, release_grads=release, eps=1e-6
            )
            scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
            for step in range(3):
                if step == 1 and scale is None:
                    continue
                loss = loss_of(large, make_batch(NAME, 10 * step + rank, torch.float64))
                factor = float("inf") if (rank, step) == (0, 1) else 1.0
                (scaler.scale(loss) * factor).backward()
                if clip:
                    scaler.unscale_(opt)
                scaler.step(opt)
                scaler.update()
                opt.zero_grad()
            learned.append([getattr(p, "_local_tensor", p).detach() for p in large.parameters()])
        torch.testing.assert_close(learned[1], learned[0], rtol=1e-10, atol=1e-12)
        assert scaler.get_scale() == (2.0**10 if rank and not shard else 2.0**9)


CHECKS = {
    2: [
        factors_equal_one_process_and_each_other,
        an_overflow_on_one_rank_skips_the_step_of_all,
        one_all_reduce_of_factors,
        gradients_that_were_there_stay,
        ranks_that_disagree,
        nothing_is_half_written,
        a_missing_shard,
        nobody_has_the_source,
        a_sharded_target_that_keeps_nothing,
        sharded_after_the_operator,
        no_gradient_on_one_rank,
        an_operator_copies,
        saves_a_checkpoint,
        a_rank_that_does_not_answer,
        a_killed_rank,
    ],
    3: [factors_equal_one_process_and_each_other, continues_it_on_another_number],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What went wrong, by number of processes and check; the processes are started once for all checks."""
    settings = {"CHECKPOINTS": str(tmp_path_factory.mktemp("checkpoints"))}
    return {size: spawn(size, checks, settings=settings) for size, checks in CHECKS.items()}


@pytest.mark.parametrize(
    "size, check", [(n, c) for n, cs in CHECKS.items() for c in cs], ids=lambda v: getattr(v, "__name__", v)
)
def test_on_processes(results, size, check):
    if problem := results[size][check.__name__]:
        pytest.fail(problem, pytrace=False)


def test_a_rank_killed_before_it_sends_rows():
    check = a_rank_killed_before_it_sends_rows
    if problem := spawn(2, [check])[check.__name__]:
        pytest.fail(problem, pytrace=False)


def test_a_group_without_processes():
    small, large = models(NAME)
    with pytest.raises(lf.GrowthError, match="not initialised"):
        lf.GrowthOptimizer(lf.GrowthOperator(small, large), process_group=object())


def empty_gpt2(layers, width):
    """GPT-2 without weights."""
    with torch.device("meta"):
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64)
        )


def test_volume_of_gpt2_medium_to_large():
    """The figure in docs/distributed.md."""
    op = lf.GrowthOperator(empty_gpt2(24, 1024), empty_gpt2(36, 1280))
    volume = lf.traffic(op)
    assert volume.ratio < 0.02
    text = (Path(__file__).parent.parent / "docs/distributed.md").read_text()
    assert f"{volume.factors / 1e6:.1f} MB" in text and f"{volume.model / 1e9:.2f} GB" in text
    assert f"{100 * volume.ratio:.1f}%" in text
