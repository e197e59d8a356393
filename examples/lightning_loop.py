"""Grow GPT-2 inside Lightning's Trainer: learn the operator, then train, in one run.

python examples/lightning_loop.py        # a minute on a laptop, on Python's own source code
"""

import tempfile
from pathlib import Path
from statistics import mean

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

import ligo_fast as lf
from ligo_fast.demo.data import VOCABULARY, Batches, load_corpus
from ligo_fast.integrations.lightning import GrowthCallback


class Grown(pl.LightningModule):
    """Trains `large`; with a `small` model its optimizer learns to grow that one first."""

    def __init__(self, large, small=None, learn: int = 0, steps: int = 0) -> None:
        super().__init__()
        self.large, self.small, self.learn, self.steps, self.losses = large, small, learn, steps, []

    def training_step(self, batch, _):
        loss = self.large(**batch).loss
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        if self.small is None:
            return torch.optim.AdamW(self.large.parameters(), lr=1e-3)
        optimizer = lf.GrowthOptimizer(lf.GrowthOperator(self.small, self.large), lr=1e-2)
        schedule = lf.GrowthSchedule(optimizer, self.learn, self.steps, warmup=10)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main(small_steps: int = 200, learn: int = 50, steps: int = 150, text: Path | None = None) -> list[float]:
    """Losses of the large model: learning the operator, then ordinary training up to `steps`."""
    batches = Batches(load_corpus(text).train, 8, 64, 0, torch.device("cpu"))
    data = DataLoader([batches[n] for n in range(max(small_steps, steps))], batch_size=None)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=2, n_head=2)
    small = GPT2LMHeadModel(config)
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"default_root_dir": folder, "logger": False, "enable_checkpointing": False}
        pl.Trainer(max_steps=small_steps, **quiet).fit(Grown(small), data)
        module = Grown(lf.grow(small, width=128, depth=4, method="stack"), small, learn, steps)
        quiet["callbacks"] = [GrowthCallback(lambda m: torch.optim.AdamW(m.parameters(), lr=5e-4))]
        pl.Trainer(max_steps=steps, gradient_clip_val=1.0, **quiet).fit(module, data)
    learned, trained = module.losses[:learn], module.losses[learn:]
    print(f"learning the operator: loss {mean(learned[:5]):.3f} to {mean(learned[-5:]):.3f}")
    print(f"training the grown model: loss {mean(trained[:5]):.3f} to {mean(trained[-5:]):.3f}")
    return module.losses


if __name__ == "__main__":
    main()
