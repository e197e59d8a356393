"""Peak memory of learning an operator beside plain AdamW training: `python -m benchmarks.learning_memory`.

Llama models with activation checkpointing and a batch of one sequence; learning releases gradients
(`GrowthOptimizer(release_grads=True)`), with the small model in memory or in a folder on the disk. On a CPU
the resident size counts, each variant in a fresh process; on a GPU what torch allocated. Steps are timed
in turn. `benchmarks.learning_paper` says what it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import ligo_fast as lf
from benchmarks.learning_paper import ON_A_CPU, SEVEN_B, TINY, LlamaPair, accounting
from benchmarks.measure import hardware, provenance, summarize, versions
from benchmarks.memory import ALLOCATOR
from benchmarks.models import parameter_bytes
from ligo_fast.bench.cases import ligo
from ligo_fast.bench.timing import resident, status_bytes

RESULTS = Path(__file__).parent / "results" / "learning_memory.json"
ON_DISK = "learning, the small model on disk"
VARIANTS = ("plain AdamW", "learning", ON_DISK)


class Training:
    """One variant, ready to make steps; `folder` is for a small model on the disk."""

    def __init__(self, variant: str, pair: LlamaPair, device: torch.device, folder: str) -> None:
        torch.manual_seed(0)
        self.sizes: dict[str, int] = {}
        if variant == VARIANTS[0]:
            self.large = pair.model(pair.large, device)
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.large.parameters(), lr=1e-4)
        else:
            op = operator(pair, device, folder if variant == ON_DISK else "")
            self.large, self.optimizer = op.large, lf.GrowthOptimizer(op, lr=1e-3, release_grads=True)
            small = 0 if op.streams else parameter_bytes(op.small)
            self.sizes = {"small weights held": small, "factors": parameter_bytes(op)}
        self.large.train()
        self.large.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self.batch = pair.batch(device)

    def step(self) -> tuple[float, float]:
        """Its seconds, and the loss before it."""
        start = perf_counter()
        loss = self.large(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        before = float(loss.detach())  # waits for the device
        return perf_counter() - start, before


def operator(pair: LlamaPair, device: torch.device, folder: str) -> lf.GrowthOperator:
    """With the small model on the device or, with a folder to put it in, on the disk."""
    small = pair.model(pair.small, device)
    if not folder:
        return ligo(small, pair.model(pair.large, "meta"))
    small.save_pretrained(folder)  # type: ignore[operator]
    del small
    where = "meta" if device.type == "cpu" else device  # the meta device's gets memory on the CPU
    return ligo(pair.model(pair.small, "meta"), pair.model(pair.large, where), source=folder)


def run(variant: str, pair: LlamaPair, device: torch.device, steps: int = 2) -> dict[str, Any]:
    """Peak bytes and seconds of each step, of one variant."""
    on_gpu = device.type == "cuda"
    base = 0 if on_gpu else resident()
    with tempfile.TemporaryDirectory() as folder:
        training = Training(variant, pair, device, folder)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        made = [training.step() for _ in range(steps)]
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else status_bytes("VmHWM") - base
    layers = [m for n, m in training.large.named_modules() if n.endswith("layers.0")]
    return training.sizes | {
        "peak": peak,
        "large weights": parameter_bytes(training.large),
        "one layer's gradients": parameter_bytes(layers[0]),
        "step seconds": summarize([seconds for seconds, _ in made[1:] or made]),
        "losses": [loss for _, loss in made],
    }


def step_ratios(pair: LlamaPair, device: torch.device, rounds: int = 5) -> dict[str, dict[str, float]]:
    """The time of each variant's step over that of the variant before it, all in turn in one process."""
    with tempfile.TemporaryDirectory() as folder:
        trainings = [Training(v, pair, device, folder) for v in VARIANTS]
        times = [[t.step()[0] for t in trainings] for _ in range(rounds + 1)][1:]
    return {
        f"{v} / {VARIANTS[n]}": summarize([seconds[n + 1] / seconds[n] for seconds in times])
        for n, v in enumerate(VARIANTS[1:])
    }


def limit(plain: dict[str, Any]) -> int:
    """The goal: plain training's peak less gradients and both moments, plus one layer's gradients and 5%."""
    weights: int = plain["large weights"]
    return int(1.05 * (plain["peak"] - 3 * weights + plain["one layer's gradients"]))


def measure(pair_name: str) -> dict[str, Any]:
    """Every variant in a process of its own."""
    found = {}
    for variant in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.learning_memory", "--pair", pair_name]
        done = subprocess.run(
            [*command, "--variant", variant], cwd=Path(__file__).parents[1], env=os.environ | ALLOCATOR,
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        found[variant] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(pair_name: str) -> dict[str, Any]:
    """The peaks, the goal and what the accounting says."""
    pair = PAIRS[pair_name]
    found = measure(pair_name)
    plain = found[VARIANTS[0]]
    learning, goal = {v: found[v] for v in VARIANTS[1:]}, limit(plain)
    return {
        "pair": {k: v if isinstance(v, (int, dict)) else str(v) for k, v in asdict(pair).items()},
        "variants": found,
        "goal": goal,
        "learning's own: factors, their gradients and moments": 4 * learning[ON_DISK]["factors"],
        "peak / plain": {v: run["peak"] / plain["peak"] for v, run in learning.items()},
        "peak / goal": {v: run["peak"] / goal for v, run in learning.items()},
        "step's time": step_ratios(pair, torch.device("cpu")),
        "on paper": {v: accounting(pair, v == ON_DISK) for v in learning},
    }


def row(pair: LlamaPair, device: torch.device, steps: int = 20) -> dict[str, Any]:
    """The row of `benchmarks.gpu`: learning alone, beside what it takes on paper."""
    part = run("learning", pair, device, steps)
    paper = sum(accounting(pair).values())
    return {"status": "measured", "on paper": paper, "steps": steps, "tokens": pair.tokens} | part


PAIRS = {"cpu": ON_A_CPU, "tiny": TINY, "7b": SEVEN_B}


def main() -> None:
    """Measure, or run one variant."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_memory", description=__doc__)
    parser.add_argument("--pair", choices=sorted(PAIRS), default="cpu")
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--row", action="store_true", help="20 steps of learning, for benchmarks.gpu")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.rehearse
    device = torch.device("cuda" if on_gpu else "cpu")
    if options.row:
        options.out.write_text(json.dumps(row(PAIRS[options.pair], device)) + "\n")
        return
    if options.variant:
        run(options.variant, TINY, device)  # loads the code
        print(json.dumps(run(options.variant, PAIRS[options.pair], device)))
        return
    result = provenance(sys.argv[1:], "benchmarks.learning_memory")
    result |= {"hardware": hardware(), "versions": versions(), **report(options.pair)}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if "/" in k or k == "goal"}, indent=1))


if __name__ == "__main__":
    main()
