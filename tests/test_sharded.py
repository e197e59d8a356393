"""Growth of sharded models on several processes: what one process does with the whole model, to rounding."""

import pytest
import torch
from distributed import spawn
from models import build, exact_rms_norm, loss_of, make_batch
from torch.distributed.fsdp import fully_shard

import ligo_fast as lf

LARGE = {
    "gpt2-lm": {"n_embd": 20, "n_head": 5, "n_inner": 26, "n_layer": 3},  # q|k|v and heads cut anywhere
    "llama-lm": {
        "hidden_size": 24, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4,
        "intermediate_size": 16, "num_hidden_layers": 3,
    },
    "bert-mlm": {
        "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17, "num_hidden_layers": 3,
    },
    "vit-class": {
        "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17, "num_hidden_layers": 3,
    },
}  # fmt: skip


def models(name, dtype=torch.float64):
    """A small model and a large one, the same on every rank."""
    sizes = {"head_dim": 4} if name.startswith("llama") else {}
    return build(name, 0, dtype, **sizes), build(name, 1, dtype, **LARGE[name])


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


def check_learning(name, shard, places, place, tolerance=1e-9, **options):
    """Three steps on a sharded model, each of `places` data-parallel ranks with a batch of its own."""
    small, large = models(name)
    _, reference = models(name)
    with exact_rms_norm():
        op = lf.GrowthOperator(small, shard(large), **options)
        opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=0.1, momentum=0.9)
        one = lf.GrowthOperator(small, reference, **options)
        one_opt = lf.GrowthOptimizer(one, torch.optim.SGD, lr=0.1, momentum=0.9)
        for step in range(3):
            batches = [make_batch(name, 10 * step + k, torch.float64) for k in range(places)]
            loss_of(large, batches[place]).backward()
            opt.step()
            (sum(loss_of(reference, b) for b in batches) / places).backward()
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


def fsdp_applies_learned_maps(rank, size):
    for options in OPTIONS:
        check_apply("gpt2-lm", fsdp, **options)
    for name in LARGE:
        check_apply(name, fsdp)


def fsdp_applies_fixed_maps_bit_for_bit(rank, size):
    for method in ("stack", "net2net+interpolate", "aki", "random"):
        for dtype in (torch.float32, torch.float64):
            check_apply("gpt2-lm", fsdp, exact=True, dtype=dtype, method=method)
    check_apply("gpt2-lm", fsdp, method="pad+zero")  # its new units are means: products


def fsdp_applies_noise(rank, size):
    check_apply("gpt2-lm", fsdp, method="net2net+stack", noise=0.1)


def fsdp_learns(rank, size):
    for name in LARGE:
        check_learning(name, fsdp, size, rank)
    for options in OPTIONS:
        check_learning("gpt2-lm", fsdp, size, rank, **options)


CHECKS = {
    2: [fsdp_applies_learned_maps, fsdp_applies_fixed_maps_bit_for_bit, fsdp_applies_noise, fsdp_learns],
    3: [fsdp_applies_learned_maps, fsdp_applies_fixed_maps_bit_for_bit, fsdp_applies_noise, fsdp_learns],
}


@pytest.fixture(scope="module")
def results():
    """What went wrong, by number of processes and check; the processes are started once for all checks."""
    return {size: spawn(size, checks) for size, checks in CHECKS.items()}


@pytest.mark.parametrize(
    "size, check", [(n, c) for n, cs in CHECKS.items() for c in cs], ids=lambda v: getattr(v, "__name__", v)
)
def test_on_processes(results, size, check):
    assert results[size][check.__name__] == ""
