"""What a benchmark holds a call against: the fewest bytes and FLOPs, counted by hand."""

from __future__ import annotations

import models
import torch

import ligo_fast as lf
from ligo_fast.bench.cases import CASES
from ligo_fast.bench.measure import Bench, fewest, parameter_bytes, random_gradients
from ligo_fast.bench.timing import Stopwatch

CPU = torch.device("cpu")


def test_work_where_one_axis_grows() -> None:
    """ffn 12 -> 18: C (6 x 12) meets 8 columns of fc, 1 of its bias, 8 rows of proj; 2 layers, D fixed."""
    op = lf.GrowthOperator(models.build("gpt2-lm"), models.build("gpt2-lm", seed=1, n_inner=18))
    size, factors = parameter_bytes(op.small) + parameter_bytes(op.large), parameter_bytes(op)
    products = 2 * 2 * (6 * 12) * (8 + 1 + 8)
    assert fewest(op, "apply") == (size + factors, products)
    assert fewest(op, "pullback") == (size + 2 * factors, products)  # dC alone


def test_work_where_width_and_depth_grow() -> None:
    """GPT-2 (8, ffn 12, 2 layers) -> (16, ffn 24, 3 layers): products on 2 layers, each once."""
    large = models.build("gpt2-lm", seed=1, n_embd=16, n_head=4, n_inner=24, n_layer=3)
    op = lf.GrowthOperator(models.build("gpt2-lm"), large)
    square = (8 * 8 * 8, 16 * 8 * 8, 8 * 8 * 8)  # C_u X, all rows of that times C_v^T, the new rows times C_v
    ffn = (12 * 12 * 8, 24 * 8 * 8, 12 * 8 * 8)
    vectors = 9 * 8 * 8 + 12 * 12  # of 8 and of 12 units; no second product
    outer = 8 * 8 * (19 + 10 + 1 + 1)  # wte, wpe and the last norm
    first, second, back = (4 * s + 2 * f for s, f in zip(square, ffn, strict=True))
    apply = 2 * 2 * (first + second + vectors) + 2 * outer
    size, factors = parameter_bytes(op.small) + parameter_bytes(op.large), parameter_bytes(op)
    assert fewest(op, "apply") == (size + factors, apply)
    made = 2 * (4 * (16 * 16 - 8 * 8) + 2 * (24 * 16 - 12 * 8) + 9 * 8 + 12)  # new units of the small layers
    assert fewest(op, "pullback") == (size + 2 * factors + 4 * made, apply + 2 * 2 * back)


def test_what_is_in_memory_is_in_the_precision_of_the_products() -> None:
    op = CASES["tiny-gpt2"].operator()
    wide = fewest(op, "pullback")[0]
    alone = fewest(op, "apply")[0] + parameter_bytes(op)
    op.precision = "bf16"
    assert fewest(op, "pullback")[0] - alone == (wide - alone) / 2 > 0


def test_gradients_are_zeroed_where_they_are_before_a_timed_pullback() -> None:
    """To make them is no part of the call, nor is to zero them."""
    op = CASES["tiny-gpt2"].operator()
    random_gradients(op)
    peer = Bench(op, Stopwatch(CPU, cold=False)).mine("pullback", "auto")
    peer.variant()
    before, first = [p.grad for p in op.parameters()], {n: g.clone() for n, g in peer.results().items()}
    peer.variant()
    assert all(a is p.grad for a, p in zip(before, op.parameters(), strict=True))
    assert all(torch.equal(g, first[n]) for n, g in peer.results().items())
    peer.variant.before()
    assert not any(bool(p.grad.any()) for p in op.parameters() if p.grad is not None)
