"""What is run: tasks, recipes for each, learning rates and seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.savings.recipes import COMPARED, MOMENTS, RECIPES, TRIED
from benchmarks.savings.tasks import Task
from ligo_fast.demo.config import Config

ALL = tuple(COMPARED)
FEW = tuple(r for r in ALL if "brief" not in r and r != "net2net+stack, noise 1")
ANY_WIDTH = tuple(r for r in FEW if r != "tile+stack")
DEEPER = ("scratch", "random", "stack", "interpolate", "pad+zero", "ligo")
WIDER = ("scratch", "random", "net2net+stack", "net2net+stack, noise 0.5", "tile+stack", "pad+zero", "ligo")


@dataclass(frozen=True)
class Study:
    """A task with its recipes.

    Attributes:
        task, recipes: what is run.
        lr: where the search begins, if not where the preset says.
        scratch: a task with the same large model, data and training: its scratch is this one's, too.
        like: a task whose learning rates and warm-ups are used instead of a search.
        at: the learning rate and the warm-up of all recipes, instead of a search.
    """

    task: Task
    recipes: tuple[str, ...]
    lr: float | None = None
    scratch: str = ""
    like: str = ""
    at: tuple[float, int] | None = None

    @property
    def name(self) -> str:
        """The task's, and that nothing was searched."""
        return self.task.name if self.at is None else f"{self.task.name}, tried"


@dataclass(frozen=True)
class Preset:
    """Studies and the search: learning rates on a ladder of factors of two around `lr`, two warm-ups."""

    studies: tuple[Study, ...]
    lr: float
    rungs: int = 2
    warmups: tuple[int, int] = (20, 80)
    seeds: Sequence[int] = (1, 2, 3)

    def study_of(self, task: str) -> Study:
        """The study of a task that chooses its settings."""
        return next(s for s in self.studies if s.task.name == task and s.at is None)

    def home(self, study: Study, recipe: str) -> Study:
        """The study that has a recipe's runs: another one's, where that is scratch of the same model."""
        return self.study_of(study.scratch) if study.scratch and recipe == "scratch" else study


TINY = Config(
    small_width=32, small_depth=2, width=64, depth=4, head_dim=16, length=64, batch=8, small_steps=375,
    steps=375, lr=3e-3, warmup=20, evaluate_every=25, evaluate_batch=64,
)  # fmt: skip
IMAGES = replace(TINY, batch=32, small_steps=300, steps=300, evaluate_every=15)
MASKED = replace(TINY, length=32, batch=16, small_steps=600, steps=600)
GPT2 = Task("gpt2", "gpt2", TINY, brief_steps=75)
LLAMA = Task("llama", "llama", TINY, brief_steps=75)
CPU = Preset(
    (
        Study(GPT2, ALL),
        Study(LLAMA, ALL),
        Study(Task("bert", "bert", MASKED), FEW, lr=3e-3),
        Study(Task("vit", "vit", IMAGES), FEW, lr=3e-3),
        Study(Task("gpt2, deeper", "gpt2", replace(TINY, small_width=64)), DEEPER, scratch="gpt2"),
        Study(Task("gpt2, wider", "gpt2", replace(TINY, small_depth=4)), WIDER, scratch="gpt2"),
    ),
    lr=6e-3,
)
TRIED_PRESET = Preset(
    (Study(LLAMA, ("scratch", "random", "net2net+stack, noise 0.5", "ligo", *TRIED), at=(3e-3, 20)),), lr=3e-3
)
OFTEN = replace(GPT2, config=replace(TINY, evaluate_every=20))  # the table tells of 20 and 40 steps
MOMENTS_PRESET = Preset((Study(OFTEN, ("scratch", *MOMENTS), at=(6e-3, 20)),), lr=6e-3)
# bfloat16 products, 32k bytes a step; the second growth uses the first one's learning rates
GPU_10M = Config(
    small_width=384, small_depth=6, width=512, depth=12, head_dim=64, length=512, batch=64, small_steps=400,
    steps=400, lr=1e-3, warmup=40, evaluate_every=20, evaluate_batch=64,
)  # fmt: skip
GPU_40M = replace(GPU_10M, small_width=512, small_depth=12, width=768, depth=16)
GPU = Preset(
    (
        Study(Task("gpt2 10M to 40M", "gpt2", GPU_10M, "installed", autocast=True), ANY_WIDTH),
        Study(
            Task("gpt2 40M to 120M", "gpt2", GPU_40M, "installed", autocast=True),
            ANY_WIDTH,
            like="gpt2 10M to 40M",
        ),
    ),
    lr=1e-3, rungs=1, warmups=(40, 120), seeds=(1, 2),
)  # fmt: skip
FEWEST = replace(TINY, steps=8, small_steps=8, evaluate_every=4, evaluate_batch=4)
QUICK = Preset(
    (Study(Task("gpt2", "gpt2", FEWEST), ("scratch", "stack", "ligo")),), lr=3e-3, rungs=1, seeds=(1,)
)
PRESETS = {"cpu": CPU, "gpu": GPU, "tried": TRIED_PRESET, "moments": MOMENTS_PRESET, "quick": QUICK}


def described(preset: Preset) -> dict[str, dict[str, Any]]:
    """What the names of tasks and recipes stand for, as it is in the JSON."""
    recipes = dict.fromkeys(recipe for s in preset.studies for recipe in s.recipes)
    found = {
        "tasks": {s.task.name: asdict(s.task) for s in preset.studies},
        "recipes": {recipe: asdict(RECIPES[recipe]) for recipe in recipes},
    }
    as_in_json: dict[str, dict[str, Any]] = json.loads(json.dumps(found))
    return as_in_json
