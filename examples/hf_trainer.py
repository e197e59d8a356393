"""Grow GPT-2 inside the Trainer of transformers: learn the operator, then train, in one run.

python examples/hf_trainer.py        # a minute on a laptop, on Python's own source code
"""

import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import ligo_fast as lf
from ligo_fast.demo.data import VOCABULARY, load_corpus
from ligo_fast.integrations.hf import GrowthCallback

SMALL = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}
SMALL |= {"bos_token_id": 0, "eos_token_id": 0}


class Windows(torch.utils.data.Dataset):
    """Consecutive pieces of a text, a byte a token."""

    def __init__(self, text: torch.Tensor, length: int = 64) -> None:
        self.pieces = text[: len(text) // length * length].view(-1, length).long()

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.pieces[n], "labels": self.pieces[n]}


def main(small_steps: int = 200, learn: int = 50, steps: int = 200, text: Path | None = None) -> list[dict]:
    """The Trainer's log of growing a small model that was trained for `small_steps`."""
    corpus = load_corpus(text)
    train, validation = Windows(corpus.train), torch.utils.data.Subset(Windows(corpus.validation), range(64))
    small = GPT2LMHeadModel(GPT2Config(**SMALL))
    with tempfile.TemporaryDirectory() as folder:
        common = {"output_dir": folder, "learning_rate": 1e-3, "report_to": [], "save_strategy": "no"}
        args = TrainingArguments(max_steps=small_steps, logging_steps=50, **common)
        Trainer(small, args, train_dataset=train).train()

        args = TrainingArguments(max_steps=steps, logging_steps=max(1, learn // 2), max_grad_norm=0, **common)
        large = lf.grow(small, width=128, depth=4, method="stack")
        operator = lf.GrowthOperator(small, large.to(args.device))  # before the trainer
        optimizer = lf.GrowthOptimizer(operator, lr=1e-2, max_grad_norm=1.0, release_grads=True)
        schedule = lf.GrowthSchedule(optimizer, learn=learn, steps=steps, warmup=10)
        trainer = Trainer(
            large, args, train_dataset=train, eval_dataset=validation,
            optimizers=(optimizer, schedule), callbacks=[GrowthCallback()],
        )  # fmt: skip
        trainer.train()
        print(f"validation loss of the grown model: {trainer.evaluate()['eval_loss']:.3f}")
    return trainer.state.log_history


if __name__ == "__main__":
    main()
