"""What is run: tasks, recipes for each, learning rates and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.savings.tasks import Task
from ligo_fast.demo.config import Config

ALL = (
    "scratch", "random", "stack", "interpolate", "net2net+stack", "aki+stack", "tile+stack", "pad+zero",
    "ligo, as published", "ligo, as the paper says", "ligo", "ligo, brief small model",
)  # fmt: skip
FEW = tuple(r for r in ALL if r not in ("interpolate", "tile+stack", "ligo, brief small model"))
DEPTH_ONLY = ("scratch", "random", "stack", "interpolate", "pad+zero", "ligo")
WIDTH_ONLY = ("scratch", "random", "net2net+stack", "tile+stack", "pad+zero", "ligo")


@dataclass(frozen=True)
class Study:
    """A task with its recipes. `like` names the study whose learning rates it uses instead of a search."""

    task: Task
    recipes: tuple[str, ...]
    like: str | None = None


@dataclass(frozen=True)
class Preset:
    """Studies and the search: learning rates on a ladder of factors of two around `lr`, two warm-ups."""

    studies: tuple[Study, ...]
    lr: float
    rungs: int = 2
    warmups: tuple[int, int] = (20, 80)
    search_seed: int = 0
    seeds: Sequence[int] = (1, 2, 3)


TINY = Config(
    small_width=32, small_depth=2, width=64, depth=4, head_dim=16, length=64, batch=8, small_steps=600,
    steps=600, lr=3e-3, warmup=20, evaluate_every=20, evaluate_batch=64,
)  # fmt: skip
IMAGES = replace(TINY, batch=32, small_steps=300, steps=300, evaluate_every=10)
MASKED = replace(TINY, length=32, batch=16, small_steps=800, steps=800)
CPU = Preset(
    (
        Study(Task("gpt2", "gpt2", TINY, brief_steps=100), ALL),
        Study(Task("llama", "llama", TINY, brief_steps=100), ALL),
        Study(Task("bert", "bert", MASKED), FEW),
        Study(Task("vit", "vit", IMAGES), FEW),
        Study(Task("gpt2, deeper", "gpt2", replace(TINY, small_width=64)), DEPTH_ONLY, "gpt2"),
        Study(Task("gpt2, wider", "gpt2", replace(TINY, small_depth=4)), WIDTH_ONLY, "gpt2"),
    ),
    lr=3e-3,
)
FEWEST = replace(TINY, steps=8, small_steps=8, evaluate_every=4, evaluate_batch=4)
QUICK = Preset(
    (Study(Task("gpt2", "gpt2", FEWEST), ("scratch", "stack", "ligo")),), lr=3e-3, rungs=1, seeds=(1,)
)
PRESETS = {"cpu": CPU, "quick": QUICK}
