"""Learn an operator with a large model that torch.compile compiled; compiling takes longer than learning.

python examples/compiled.py
"""

from pathlib import Path
from statistics import mean
from time import perf_counter

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import ligo_fast as lf
from ligo_fast.demo.data import VOCABULARY, Batches, load_corpus

SMALL = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}
SMALL |= {"bos_token_id": 0, "eos_token_id": 0}


def main(
    small_steps: int = 200, learn: int = 50, text: Path | None = None, backend="inductor"
) -> list[float]:
    """Losses while the operator is learned."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = Batches(load_corpus(text).train, rows=8, length=64, seed=0, device=device)
    small = GPT2LMHeadModel(GPT2Config(**SMALL)).to(device)
    optimizer = torch.optim.AdamW(small.parameters(), 1e-3)
    for step in range(small_steps):
        loss = small(**batches[step]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"small: loss {float(loss.detach()):.3f}")

    large = lf.grow(small, width=128, depth=4, method="stack")
    model = torch.compile(large, backend=backend)
    operator = lf.GrowthOperator(small, model)  # sees through the wrapper: the weights are the same
    growth = lf.GrowthOptimizer(operator, lr=1e-2, release_grads=True)
    schedule = lf.GrowthSchedule(growth, learn)
    losses, start = [], perf_counter()
    for step in range(learn):
        loss = model(**batches[step]).loss
        loss.backward()
        growth.step()
        growth.zero_grad()
        schedule.step()
        losses.append(float(loss.detach()))
        if step == 0:
            print(f"first step, with compiling: {perf_counter() - start:.1f} s")
    growth.close()  # from here on the model trains like any other
    print(f"learning the operator: loss {mean(losses[:5]):.3f} to {mean(losses[-5:]):.3f}")
    return losses


if __name__ == "__main__":
    main()
