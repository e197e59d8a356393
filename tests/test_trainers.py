"""GrowthOptimizer inside trainers, unmodified: the Trainer of transformers, Accelerate, Lightning."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from models import build, loss_of, make_batch, same, snapshot
from transformers import Trainer, TrainingArguments

import ligo_fast as lf
from ligo_fast.integrations import hf, lightning
from ligo_fast.training.released import Released

LEARN, STEPS = 3, 6


def start(release=False, **options):
    """A GPT-2 on its way from (8, 2 layers) to (16, 3 layers), optimizer and schedule of both phases."""
    small = build("gpt2-lm")
    large = lf.grow(small, width=16, depth=3, method="copy")
    op = lf.GrowthOperator(small, large, seed=1)
    opt = lf.GrowthOptimizer(op, torch.optim.SGD, lr=1e-2, momentum=0.9, release_grads=release, **options)
    return large, opt, lf.GrowthSchedule(opt, LEARN, STEPS, learn_warmup=2, warmup=2)


def next_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)


def check_close(expected, model):
    """Trainers divide the loss in their own ways: equal to rounding, which SGD does not amplify."""
    for n, p in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(n), p, rtol=1e-4, atol=1e-6, msg=n)


class Same(torch.utils.data.Dataset):
    """The same row again and again: the order in which a trainer draws rows does not matter."""

    def __init__(self, rows=64):
        self.rows = rows
        batch = make_batch("gpt2-lm", rows=1)
        labels = batch["labels"][0].clone()
        labels[0] = -100  # predicted by nothing, but the Trainer would count it
        self.row = {"input_ids": batch["input_ids"][0], "labels": labels}

    def __len__(self):
        return self.rows

    def __getitem__(self, n):
        return self.row


def rows(n=2):
    return {name: torch.stack([t] * n) for name, t in Same().row.items()}


def plain_loop(release=False, steps=STEPS, parts=1, clip=None, **options):
    """What trainers are compared with: both phases, by hand. Returns the model and the rates of each step."""
    large, opt, schedule = start(release, **options)
    rates = []
    large.train()
    for step in range(steps):
        if step == LEARN:
            opt.close()
            opt.hand_over(next_optimizer(large))
            schedule.refresh()
        for _ in range(parts):
            (loss_of(large, rows()) / parts).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(large.parameters(), clip)
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        opt.zero_grad()
        schedule.step()
    return large, rates


# the schedule and the hand-over themselves


def test_the_schedule_warms_up_and_decays_twice():
    _, rates = plain_loop()
    want = [0.5e-2, 1e-2, 1e-2, 0.5e-3, 1e-3, 1e-3]
    assert rates == pytest.approx(want)


def test_the_schedule_decays_linearly_and_takes_a_function():
    _, opt, _ = start()
    schedule = lf.GrowthSchedule(opt, 5, 10, learn_warmup=1, then=lambda k: 1 / (k + 1))
    assert [schedule.factor(k) for k in range(5)] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.25])
    assert [schedule.factor(k) for k in range(5, 8)] == pytest.approx([1, 1 / 2, 1 / 3])


@pytest.mark.parametrize("learn, steps", [(0, 10), (5, 5), (6, 3)])
def test_a_schedule_without_steps_is_refused(learn, steps):
    _, opt, _ = start()
    with pytest.raises(lf.GrowthError, match=f"learn={learn}( of steps={steps})?: "):
        lf.GrowthSchedule(opt, learn, steps)


@pytest.mark.parametrize("release", [True, False])
def test_after_the_hand_over_it_is_the_other_optimizer(release):
    large, opt, _ = start(release)
    loss_of(large, rows()).backward()
    opt.step()
    opt.hand_over(next_optimizer(large))
    assert all(p.grad is None for p in large.parameters())
    assert [id(p) for g in opt.param_groups for p in g["params"]] == [id(p) for p in large.parameters()]
    before = snapshot(large)
    loss_of(large, rows()).backward()
    assert all(type(p.grad) is torch.Tensor for p in large.parameters())
    opt.step()
    opt.zero_grad()
    assert all(p.grad is None for p in large.parameters())

    other, opt2, _ = start()
    other.load_state_dict({**before, "lm_head.weight": before["transformer.wte.weight"]})
    plain = next_optimizer(other)
    loss_of(other, rows()).backward()
    plain.step()
    assert same(snapshot(other), large)
    del opt2


def test_a_hand_over_is_made_once_and_of_the_large_model():
    large, opt, _ = start()
    with pytest.raises(lf.GrowthError, match="parameters of SGD are not the large model's"):
        opt.hand_over(next_optimizer(opt.op.small))
    opt.hand_over(next_optimizer(large))
    with pytest.raises(lf.GrowthError, match="handed over before"):
        opt.hand_over(next_optimizer(large))


def test_a_state_from_after_the_hand_over_waits_for_one():
    large, opt, _ = start()
    opt.hand_over(next_optimizer(large))
    for _ in range(2):
        loss_of(large, rows()).backward()
        opt.step()
        opt.zero_grad()
    other, again, _ = start()
    other.load_state_dict(large.state_dict())
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert same(snapshot(large), other) and again.is_waiting
    with pytest.raises(lf.GrowthError, match="hand_over"):
        again.step()
    again.hand_over(next_optimizer(other))
    for model, optimizer in ((large, opt), (other, again)):
        loss_of(model, rows()).backward()
        optimizer.step()
    assert same(snapshot(large), other)
    with pytest.raises(lf.GrowthError, match="before the hand-over"):
        again.load_state_dict(start()[1].state_dict())


# the Trainer of transformers


def arguments(folder, **options):
    base = {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 2, "logging_steps": 1,
        "report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "max_grad_norm": 0,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**base | options)


def hf_trainer(folder, release=False, then=next_optimizer, callback=True, learner=None, **options):
    large, opt, schedule = start(release, **learner or {})
    callbacks = [hf.GrowthCallback(then)] if callback else []
    args = arguments(folder, **options)
    trainer = Trainer(large, args, train_dataset=Same(), optimizers=(opt, schedule), callbacks=callbacks)
    return trainer, opt


@pytest.mark.parametrize("release", [True, False])
def test_the_trainer_runs_both_phases_as_a_plain_loop_does(release, tmp_path):
    expected, rates = plain_loop(release)
    trainer, opt = hf_trainer(tmp_path, release)
    trainer.train()
    check_close(expected, trainer.model)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["growth_learning"] for log in logs] == [1.0] * LEARN + [0.0] * (STEPS - LEARN)
    assert [log["learning_rate"] for log in logs] == pytest.approx(rates)
    assert all(0 < log["grad_norm"] < 1e3 for log in logs)
    assert type(opt.next) is torch.optim.SGD


@pytest.mark.parametrize("release", [True, False])
def test_the_trainer_accumulates(release, tmp_path):
    expected, _ = plain_loop(release, parts=2)
    trainer, _ = hf_trainer(tmp_path, release, gradient_accumulation_steps=2)
    trainer.train()
    check_close(expected, trainer.model)


def test_the_trainer_clips_the_models_gradients(tmp_path):
    expected, _ = plain_loop(clip=0.1)
    trainer, _ = hf_trainer(tmp_path, max_grad_norm=0.1)
    trainer.train()
    check_close(expected, trainer.model)


def test_the_next_optimizer_is_what_the_arguments_describe(tmp_path):
    trainer, opt = hf_trainer(tmp_path, then=None, learning_rate=3e-4, weight_decay=0.1, adam_beta2=0.95)
    trainer.train()
    assert isinstance(opt.next, torch.optim.AdamW)
    assert [g["initial_lr"] for g in opt.param_groups] == [3e-4] * 2
    assert [g["weight_decay"] for g in opt.param_groups] == [0.1, 0.0]
    assert all(g["betas"] == (0.9, 0.95) for g in opt.param_groups)


@pytest.mark.parametrize("release", [True, False])
@pytest.mark.parametrize("at", [2, 3, 5])
def test_the_trainer_resumes_in_either_phase(at, release, tmp_path):
    trainer, _ = hf_trainer(tmp_path, release, save_strategy="steps", save_steps=1)
    trainer.train()
    again, opt = hf_trainer(tmp_path, release)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert same(snapshot(trainer.model), again.model)
    assert opt.next is not None and not opt.is_waiting


def test_the_trainer_without_the_callback(tmp_path):
    """All of it learns the operator."""
    for release in (True, False):
        trainer, opt = hf_trainer(tmp_path, release, callback=False, max_steps=LEARN)
        trainer.train()
        expected, _ = plain_loop(release, steps=LEARN)
        check_close(expected, trainer.model)
        assert opt.next is None


def test_clipping_in_the_trainer_and_released_gradients(tmp_path):
    trainer, opt = hf_trainer(tmp_path, True, max_grad_norm=1.0)
    before = snapshot(trainer.model)
    with pytest.raises(lf.GrowthError, match=r"max_grad_norm=1\.0.*max_grad_norm=0"):
        trainer.train()
    assert same(before, trainer.model)
    trainer, opt = hf_trainer(tmp_path, True, callback=False, max_grad_norm=1.0)
    with pytest.raises(lf.GrowthError, match="max_grad_norm="):
        trainer.train()
    assert same(before, trainer.model) and opt.release is not None


def test_the_callback_says_what_it_needs(tmp_path):
    large, opt, schedule = start()
    plain = torch.optim.AdamW(large.parameters())
    flat = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 1.0)
    other, _, _ = start()
    cases = [
        (large, (plain, torch.optim.lr_scheduler.LambdaLR(plain, lambda k: 1.0)), "GrowthOptimizer.*AdamW"),
        (large, (opt, flat), "GrowthSchedule.*LambdaLR"),
        (other, (opt, schedule), "another GPT2LMHeadModel"),
    ]
    for model, optimizers, words in cases:
        trainer = Trainer(
            model, arguments(tmp_path), train_dataset=Same(), optimizers=optimizers,
            callbacks=[hf.GrowthCallback()],
        )  # fmt: skip
        with pytest.raises(lf.GrowthError, match=words):
            trainer.train()


def test_a_trainer_that_casts_the_model_is_told(tmp_path):
    trainer, _ = hf_trainer(tmp_path)
    trainer.model.to(torch.bfloat16)
    with pytest.raises(lf.GrowthError, match=r"is now .*bfloat16.*made for .*float32"):
        trainer.train()


# Accelerate


@pytest.fixture(autouse=True)
def own_accelerator():
    """Accelerate keeps one state for the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("release", [True, False])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_prepared_optimizer_learns_as_the_plain_one(precision, release):
    weights = []
    for prepared in (False, True):
        large, opt, _ = start(release)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        if prepared:
            model, optimizer = accelerator.prepare(large, opt)
            assert accelerator.unwrap_model(model) is opt.op.large
        else:
            model, optimizer = large, opt
        for _ in range(2):
            with accelerator.autocast():
                loss = loss_of(model, rows())
            accelerator.backward(loss) if prepared else loss.backward()
            if not release:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        weights.append(snapshot(large))
    for n, p in weights[0].items():
        torch.testing.assert_close(weights[1][n], p, rtol=1e-3, atol=1e-4, msg=n)


def test_accelerate_accumulates():
    large, opt, _ = start()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(large, opt)
    before = snapshot(large)
    for part in range(2):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, rows()))
            optimizer.step()
            optimizer.zero_grad()
        assert same(before, large) == (part == 0)


def test_accelerates_clipping_and_released_gradients():
    large, opt, _ = start(release=True)
    accelerator = Accelerator(cpu=True)
    model, _ = accelerator.prepare(large, opt)
    accelerator.backward(loss_of(model, rows()))
    with pytest.raises(lf.GrowthError, match="max_grad_norm="):
        accelerator.clip_grad_norm_(model.parameters(), 1.0)


# Lightning


class Module(pl.LightningModule):
    """Learns to grow, then trains; the operator is made where Lightning asks for the optimizer."""

    def __init__(self, release=False, flat=False):
        super().__init__()
        self.large, opt, schedule = start(release)
        self.growth = (opt, torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 1.0) if flat else schedule)

    def training_step(self, batch, number):
        return loss_of(self.large, batch)

    def configure_optimizers(self):
        return {
            "optimizer": self.growth[0],
            "lr_scheduler": {"scheduler": self.growth[1], "interval": "step"},
        }


def fit(module, folder, checkpoint=None, callbacks=(), **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=STEPS, default_root_dir=folder,
        callbacks=[lightning.GrowthCallback(next_optimizer), *callbacks],
        **{"enable_checkpointing": False} | quiet | options,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(Same(), batch_size=2), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("release", [True, False])
def test_lightning_runs_both_phases_as_a_plain_loop_does(release, tmp_path):
    expected, _ = plain_loop(release)
    module = Module(release)
    trainer = fit(module, tmp_path)
    assert same(snapshot(expected), module.large)
    assert type(module.growth[0].next) is torch.optim.SGD
    assert trainer.callback_metrics["growth_learning"] == 0.0


def test_lightning_clips_what_the_optimizer_shows(tmp_path):
    module = Module()
    fit(module, tmp_path, gradient_clip_val=0.1)
    expected, _ = plain_loop(clip=0.1)
    assert same(snapshot(expected), module.large)
    norms = []
    module = Module(release=True)
    step = module.growth[0].inner.step
    module.growth[0].inner.step = lambda *a: (norms.append(factor_norm(module.growth[0])), step(*a))
    fit(module, tmp_path, gradient_clip_val=0.01)
    assert len(norms) == LEARN and norms == pytest.approx([0.01] * LEARN, rel=1e-3)


def factor_norm(opt):
    return float(torch.nn.utils.get_total_norm([p.grad for p in opt.op.parameters()]))


@pytest.mark.parametrize("release", [True, False])
@pytest.mark.parametrize("at", [2, 5])
def test_lightning_resumes_in_either_phase(at, release, tmp_path):
    saver = pl.callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
    )
    module = Module(release)
    fit(module, tmp_path, callbacks=[saver], enable_checkpointing=True)
    again = Module(release)
    fit(again, tmp_path, checkpoint=tmp_path / f"step={at}.ckpt")
    assert same(snapshot(module.large), again.large)


def test_lightnings_callback_says_what_it_needs(tmp_path):
    with pytest.raises(lf.GrowthError, match=r"GrowthSchedule.*LambdaLR"):
        fit(Module(flat=True), tmp_path)


def test_no_mark_is_left_in_the_model_after_a_run(tmp_path):
    module = Module(release=True)
    fit(module, tmp_path)
    assert not any(isinstance(p.grad, Released) for p in module.large.parameters())
