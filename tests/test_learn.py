"""`learn`: the loop around GrowthOptimizer."""

import math
from typing import NamedTuple

import pytest
import torch
from models import build, loss_of, make_batch, output, same, snapshot

import ligo_fast as lf


def start(name="gpt2-lm", seed=1, **sizes):
    """An operator from (8, 2 layers) to (16, 3 layers), and what the target held."""
    small = build(name, **sizes)
    large = lf.grow(small, width=2 * small.config.hidden_size, depth=3, method="copy")
    return lf.GrowthOperator(small, large, seed=seed)


@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "llama-lm", "qwen3-lm", "vit-class"])
def test_a_memorised_batch_has_less_loss(name):
    op, batch = start(name), make_batch(name)
    small_before = snapshot(op.small)
    learned = lf.learn(op, [batch], steps=20)
    assert len(learned.losses) == 20 and learned.seconds > 0
    assert learned.losses[-1] < 0.9 * learned.losses[0]
    assert float(loss_of(op.large, batch).detach()) < learned.losses[0]
    assert same(small_before, op.small)


def test_it_repeats_bit_for_bit():
    batches = [make_batch("gpt2-lm", seed=s) for s in range(3)]
    runs = []
    for seed in (1, 1, 2):
        op = start(seed=seed)
        runs.append((lf.learn(op, batches, steps=6).losses, snapshot(op.large)))
    assert runs[0][0] == runs[1][0] and all(torch.equal(runs[0][1][n], t) for n, t in runs[1][1].items())
    assert runs[0][0] != runs[2][0]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_mode_is_restored(training):
    op, seen = start(), []
    op.large.train(training)
    lf.learn(op, [make_batch("gpt2-lm")], steps=1, progress=lambda *_: seen.append(op.large.training))
    assert op.large.training is training and seen == [True]


def test_the_mode_is_restored_after_an_error():
    op = start()
    op.large.eval()

    def broken(model, batch):
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match="no loss today"):
        lf.learn(op, [make_batch("gpt2-lm")], loss=broken)
    assert not op.large.training


def test_progress_sees_every_step():
    op, seen = start(), []
    learned = lf.learn(
        op, [make_batch("gpt2-lm")], steps=4, progress=lambda step, loss: seen.append((step, loss))
    )
    assert seen == list(enumerate(learned.losses))


def test_data_starts_over():
    op, given = start(), []

    class Batches:
        def __iter__(self):
            for seed in range(2):
                given.append(seed)
                yield make_batch("gpt2-lm", seed=seed)

    lf.learn(op, Batches(), steps=5)
    assert given == [0, 1, 0, 1, 0]


def test_no_batch_is_taken_beyond_the_last_step():
    given = []

    def batches():
        for seed in range(10):
            given.append(seed)
            yield make_batch("gpt2-lm", seed=seed)

    lf.learn(start(), batches(), steps=3)
    assert given == [0, 1, 2]


def test_a_loss_of_ones_own():
    op = start("gpt2")
    taken = []

    def loss(model, batch):
        taken.append(batch)
        return output(model, batch).square().mean()

    batch = make_batch("gpt2")
    learned = lf.learn(op, [batch], steps=10, loss=loss, lr=1e-2)
    assert len(taken) >= 10 and learned.losses[-1] < learned.losses[0]


class Named(NamedTuple):
    ids: torch.Tensor
    labels: torch.Tensor


@pytest.mark.parametrize("kind", [tuple, list, Named._make])
def test_batches_may_be_sequences(kind):
    batch = make_batch("gpt2-lm")
    pair = kind([batch["input_ids"], batch["labels"]])
    learned = lf.learn(start(), [pair], steps=2, loss=lambda m, b: m(input_ids=b[0], labels=b[1]).loss)
    assert len(learned.losses) == 2


def test_the_inner_optimizer_and_its_schedule():
    op, rates = start(), []

    class Recorded(torch.optim.SGD):
        def step(self, closure=None):
            rates.append([g["lr"] for g in self.param_groups])
            return super().step(closure)

    lf.learn(
        op, [make_batch("gpt2-lm")], steps=4, lr=0.1, warmup=2, depth_lr=0.5, optimizer=Recorded, momentum=0.9
    )
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([[1, 0.5], [2, 1], [2, 1], [1, 0.5]]) * 0.05)


@pytest.mark.parametrize(
    "steps, warmup, rates",
    [
        (5, 10, [0.5, 1, 1, 2 / 3, 1 / 3]),
        (5, 5, [0.5, 1, 1, 2 / 3, 1 / 3]),
        (5, 4, [1 / 4, 2 / 4, 3 / 4, 1, 1]),
        (1, 10, [1]),
    ],
)
def test_a_long_warm_up_takes_half_of_the_steps(steps, warmup, rates):
    opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = lf.GrowthSchedule(opt, learn=steps, learn_warmup=warmup)
    assert [schedule.factor(step) for step in range(steps)] == pytest.approx(rates)


def test_the_factors_gradient_is_clipped():
    norms = []

    class Recorded(torch.optim.SGD):
        def step(self, closure=None):
            norms.append(
                float(torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm())
            )
            return super().step(closure)

    op = start()
    lf.learn(op, [make_batch("gpt2-lm")], steps=2, optimizer=Recorded, max_grad_norm=1e-2)
    lf.learn(op, [make_batch("gpt2-lm")], steps=2, optimizer=Recorded, max_grad_norm=None)
    assert norms[:2] == pytest.approx([1e-2] * 2, rel=1e-3) and min(norms[2:]) > 1e-2


def test_gradients_are_freed():
    op = start()
    lf.learn(op, [make_batch("gpt2-lm")], steps=1)
    assert all(p.grad is None for p in op.large.parameters())


def refused(op, words, **arguments):
    """A GrowthError with these words, and not one bit of either model changed."""
    before, small_before = snapshot(op.large), snapshot(op.small)
    training = op.large.training
    with pytest.raises(lf.GrowthError) as error:
        lf.learn(op, **arguments)
    assert all(w in str(error.value) for w in words), error.value
    assert same(before, op.large) and same(small_before, op.small) and op.large.training is training


@pytest.mark.parametrize("empty", [[], iter(()), {}.values()], ids=["list", "iterator", "view"])
def test_empty_data_is_refused(empty):
    refused(start(), ["empty"], batches=empty)


def test_a_loss_without_gradient_is_refused():
    def detached(model, batch):
        return loss_of(model, batch).detach()

    refused(start(), ["gradient"], batches=[make_batch("gpt2-lm")], loss=detached)


def test_a_loss_of_something_else_is_refused():
    """It has a gradient, but none of the model's parameters does."""
    other = torch.ones(2, requires_grad=True)
    refused(start(), ["gradient"], batches=[{}], loss=lambda model, batch: other.sum())


def test_a_model_without_a_loss_is_refused():
    refused(start("gpt2"), ["GPT2Model", "loss"], batches=[make_batch("gpt2")])


def test_one_batch_is_no_data():
    refused(
        start(), ["one batch", "input_ids, attention_mask, labels", "list"], batches=make_batch("gpt2-lm")
    )


def test_batches_that_are_no_mappings_need_a_loss():
    refused(start(), ["Tensor", "mapping", "loss="], batches=torch.zeros(2, 4).long())


def test_a_loss_that_is_no_tensor_is_refused():
    refused(
        start(), ["tensor", "float"], batches=[make_batch("gpt2-lm")], loss=lambda m, b: loss_of(m, b).item()
    )


def test_a_loss_that_is_not_one_number_is_refused():
    def each(model, batch):
        return output(model, batch).mean(-1)

    refused(start(), ["2, 7"], batches=[make_batch("gpt2-lm")], loss=each)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps):
    refused(start(), [f"steps={steps}"], batches=[make_batch("gpt2-lm")], steps=steps)


def test_an_operator_without_factors_is_refused():
    small = build("gpt2-lm")
    large = lf.grow(small, width=16, method="copy")
    refused(lf.GrowthOperator(small, large, method="tile"), ["tile"], batches=[make_batch("gpt2-lm")])


def test_data_that_ends_early_is_named_with_its_numbers():
    batches = iter([make_batch("gpt2-lm")] * 3)
    with pytest.raises(lf.GrowthError, match="3 of 5"):
        lf.learn(start(), batches, steps=5)


def test_every_module_gets_its_own_mode_back():
    op = start()
    op.large.train().transformer.h[0].eval()
    before = [m.training for m in op.large.modules()]
    lf.learn(op, [make_batch("gpt2-lm")], steps=1)
    assert [m.training for m in op.large.modules()] == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("release", [False, True])
def test_a_loss_that_is_not_finite_any_more_stops_before_its_step(bad, release):
    op, twin = start(), start()
    batch, calls = make_batch("gpt2-lm"), []

    def loss(model, batch):
        calls.append(0)
        return model(**batch).loss * (bad if len(calls) == 4 else 1.0)  # the first one is a look

    options = {"warmup": 0, "release_grads": release}
    with pytest.raises(lf.GrowthError, match=f"^step 3 of 9: the loss is {bad} and the gradient of "):
        lf.learn(op, [batch], 9, loss=loss, **options)
    with pytest.raises(KeyboardInterrupt):
        lf.learn(twin, [batch], 9, progress=interrupt_after_two, **options)
    assert same(snapshot(twin.large), op.large)
    assert all(torch.equal(p, q) for p, q in zip(op.parameters(), twin.parameters(), strict=True))
    assert all(
        p.grad is None or bool(p.grad.isfinite().all()) for p in (*op.large.parameters(), *op.parameters())
    )


def interrupt_after_two(step, loss):
    if step == 1:
        raise KeyboardInterrupt


def test_a_batch_without_labels_does_no_harm():
    op, batch = start(), make_batch("gpt2-lm")
    empty = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    losses = lf.learn(op, [batch, empty, batch], 3).losses
    assert math.isnan(losses[1]) and math.isfinite(losses[2])
    assert all(bool(p.isfinite().all()) for p in op.large.parameters())


def test_factors_that_are_not_finite_in_the_end():
    def loss(model, batch):  # finite, but its gradient at 0 is not
        return (model(**batch).loss * 0).sqrt()

    with pytest.raises(lf.GrowthError, match=r"^after 1 steps factor .* is not finite"):
        lf.learn(start(), [make_batch("gpt2-lm")], 1, loss=loss)
