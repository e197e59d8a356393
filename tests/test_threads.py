"""Several threads: one operator from two of them, and optimizers' steps beside a growth."""

import sys
import threading
import time

import pytest
import torch
from models import build, grow_copy, loss_of, make_batch
from torch import nn

import ligo_fast as lf
from ligo_fast import unchanged
from ligo_fast.compute import float32
from ligo_fast.unchanged import Snapshot

CALLS = 25


@pytest.fixture(autouse=True)
def eager_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*calls):
    """Runs each call in a thread of its own; raises what one of them raised."""
    ready, errors = threading.Barrier(len(calls)), []

    def run(call):
        try:
            ready.wait()
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def operator():
    small = build("gpt2-lm", dtype=torch.float64, n_embd=32, n_inner=64)
    return lf.GrowthOperator(small, grow_copy(small))


def test_one_operator_applies_in_two_threads():
    op = operator()
    op.apply_()
    want = [p.detach().clone() for p in op.large.parameters()]

    def apply():
        for _ in range(CALLS):
            op.apply_()

    at_once(apply, apply)
    for p, w in zip(op.large.parameters(), want, strict=True):
        assert torch.equal(p, w)


def test_one_operator_pulls_back_in_two_threads():
    op = operator()
    op.apply_()
    loss_of(op.large, make_batch("gpt2-lm")).backward()
    op.pullback()
    want = {n: p.grad.clone() for n, p in op.named_parameters()}
    op.zero_grad()

    def pull_back():
        for _ in range(CALLS):
            op.pullback()

    at_once(pull_back, pull_back)
    for n, p in op.named_parameters():
        torch.testing.assert_close(p.grad, 2 * CALLS * want[n], rtol=1e-12, atol=1e-13, msg=n)


def test_the_precision_of_products_is_put_back_after_two_threads():
    """Operators of two models on GPUs, each in a backward pass of its own."""
    gpu, matmul = torch.device("cuda"), torch.backends.cuda.matmul
    before, seen, inside = matmul.fp32_precision, [], threading.Event()

    def other():
        with float32.using("ieee", gpu):
            inside.set()
            seen.append(matmul.fp32_precision)
            time.sleep(0.2)

    thread = threading.Thread(target=other)
    with float32.using("tf32", gpu):
        thread.start()
        inside.wait(0.2)
        seen.append(matmul.fp32_precision)
    thread.join()
    assert seen == ["tf32", "ieee"]
    assert matmul.fp32_precision == before


def test_a_snapshot_made_beside_an_optimizers_step():
    """What another thread may do between any two of its lines, an optimizer's `param_groups` does here."""
    seen, made = nn.Parameter(torch.zeros(2)), []
    first = Snapshot([seen])

    class Busy:
        @property
        def param_groups(self):
            made.append(Snapshot([nn.Parameter(torch.zeros(2))]))
            return [{"params": [seen]}]

    unchanged._stepped(Busy(), (), {})
    assert made and not first.holds([seen])


def test_snapshots_that_are_gone_are_forgotten():
    tensor = nn.Parameter(torch.zeros(2))
    before = len(unchanged._kept)
    snapshot = Snapshot([tensor])
    assert len(unchanged._kept) == before + 1
    del snapshot
    assert len(unchanged._kept) == before
