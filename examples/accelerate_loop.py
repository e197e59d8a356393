"""Grow GPT-2 in an Accelerate loop: the prepared optimizer learns the operator, then is handed over.

python examples/accelerate_loop.py       # a minute on a laptop, on Python's own source code
"""

from pathlib import Path
from statistics import mean

import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel

import ligo_fast as lf
from ligo_fast.demo.data import VOCABULARY, Batches, load_corpus

SMALL = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}
SMALL |= {"bos_token_id": 0, "eos_token_id": 0}


def main(small_steps: int = 200, learn: int = 50, steps: int = 150, text: Path | None = None) -> list[float]:
    """Losses of the large model: learning the operator, then ordinary training up to `steps`."""
    accelerator = Accelerator(gradient_accumulation_steps=2)
    batches = Batches(load_corpus(text).train, rows=8, length=64, seed=0, device=accelerator.device)
    small = GPT2LMHeadModel(GPT2Config(**SMALL)).to(accelerator.device)
    small_optimizer = torch.optim.AdamW(small.parameters(), 1e-3)
    for step in range(small_steps):
        loss = small(**batches[step]).loss
        loss.backward()
        small_optimizer.step()
        small_optimizer.zero_grad()
    accelerator.print(f"small: loss {float(loss.detach()):.3f}")

    large = lf.grow(small, width=128, depth=4, method="stack")
    growth = lf.GrowthOptimizer(lf.GrowthOperator(small, large), lr=1e-2)
    schedule = lf.GrowthSchedule(growth, learn, steps, warmup=10)
    model, optimizer = accelerator.prepare(large, growth)
    losses = []
    for step in range(2 * steps):
        with accelerator.accumulate(model):
            loss = model(**batches[step]).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            schedule.step()
            losses.append(float(loss.detach()))
            if schedule.last_epoch == learn:
                growth.hand_over(torch.optim.AdamW(large.parameters(), lr=5e-4))
                schedule.refresh()
    learned, trained = losses[:learn], losses[learn:]
    accelerator.print(f"learning the operator: loss {mean(learned[:5]):.3f} to {mean(learned[-5:]):.3f}")
    accelerator.print(f"training the grown model: loss {mean(trained[:5]):.3f} to {mean(trained[-5:]):.3f}")
    return losses


if __name__ == "__main__":
    main()
