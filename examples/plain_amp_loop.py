"""Grow GPT-2 in a plain loop with mixed precision, accumulated gradients, clipping and a schedule.

python examples/plain_amp_loop.py        # a minute on a laptop, on Python's own source code
"""

from pathlib import Path
from statistics import mean

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import ligo_fast as lf
from ligo_fast.demo.data import VOCABULARY, Batches, load_corpus

SMALL = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}
SMALL |= {"bos_token_id": 0, "eos_token_id": 0}

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run(model, optimizer, batches, steps, schedule=None, micro_batches=2, max_norm=1.0) -> list[float]:
    """An ordinary loop: it does not know what kind of optimizer it drives. Returns the losses."""
    scaler, losses = torch.amp.GradScaler(DEVICE.type), []
    for step in range(steps):
        for part in range(micro_batches):
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                loss = model(**batches[step * micro_batches + part]).loss / micro_batches
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
        losses.append(micro_batches * float(loss.detach()))
    return losses


def main(small_steps: int = 200, learn: int = 50, steps: int = 100, text: Path | None = None) -> list[float]:
    """Losses of the large model: while the operator is learned, then in ordinary training."""
    batches = Batches(load_corpus(text).train, rows=8, length=64, seed=0, device=DEVICE)
    small = GPT2LMHeadModel(GPT2Config(**SMALL)).to(DEVICE)
    print(
        f"small: loss {run(small, torch.optim.AdamW(small.parameters(), 1e-3), batches, small_steps)[-1]:.3f}"
    )

    large = lf.grow(small, width=128, depth=4, method="stack")
    optimizer = lf.GrowthOptimizer(lf.GrowthOperator(small, large), lr=1e-2)
    learned = run(large, optimizer, batches, learn, lf.GrowthSchedule(optimizer, learn))
    print(f"learning the operator: loss {mean(learned[:5]):.3f} to {mean(learned[-5:]):.3f}")

    trained = run(large, torch.optim.AdamW(large.parameters(), 5e-4), batches, steps)
    print(f"training the grown model: loss {mean(trained[:5]):.3f} to {mean(trained[-5:]):.3f}")
    return learned + trained


if __name__ == "__main__":
    main()
