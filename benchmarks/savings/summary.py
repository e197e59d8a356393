"""What each recipe saves, from the runs of a study: per seed against scratch of the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from benchmarks.savings.presets import Preset, Study
from benchmarks.savings.recipes import RECIPES
from benchmarks.savings.run import Setting
from benchmarks.savings.search import Results, chosen, key
from ligo_fast.demo.cost import crossing

STEP, FLOPS, SECONDS, LOSS = range(4)  # columns of a curve


@dataclass(frozen=True)
class Outcome:
    """One seed: what was spent until scratch's final loss, as a share of scratch's; None if not reached.

    `run` is its name in the JSON.

    `flops` and `seconds` count growing and training; `all_flops` and `all_seconds` the small model, too.
    """

    run: str
    initial_loss: float
    final_loss: float
    target: float
    flops: float | None
    all_flops: float | None
    seconds: float | None
    all_seconds: float | None


@dataclass(frozen=True)
class Row:
    """One recipe of a study at the setting that the search chose."""

    study: str
    task: str
    recipe: str
    setting: Setting
    outcomes: list[Outcome]

    def saved(self, what: str) -> list[float] | None:
        """1 - F / F_scratch for every seed; None unless every seed reached the target."""
        shares = [getattr(o, what) for o in self.outcomes]
        return None if None in shares else [1 - share for share in shares]

    def mean(self, of: Callable[[Outcome], float]) -> float:
        """Over the seeds."""
        return mean(map(of, self.outcomes))


def summarize(preset: Preset, results: Results) -> list[Row]:
    """Recipes whose seeds have all been run, in the preset's order."""
    rows = []
    for study in preset.studies:
        pace = _seconds_a_step(study.task.name, results)
        for recipe in study.recipes:
            settings = [chosen(preset, study, r, results) for r in ("scratch", recipe)]
            if None in settings:
                continue
            outcomes = [
                _outcome(recipe, *_names(preset, study, recipe, settings, seed), results, pace)
                for seed in preset.seeds
            ]
            if outcomes and None not in outcomes:
                rows.append(Row(study.name, study.task.name, recipe, settings[1], outcomes))
    return rows


def _seconds_a_step(task: str, results: Results) -> float:
    """The median over a task's runs, all of the same steps: other work on the machine drops out."""
    ends = [r["curve"][-1] for name, r in results.items() if name.startswith(f"{task} / ")]
    return median(end[SECONDS] / end[STEP] for end in ends) if ends else 0.0


def _names(preset: Preset, study: Study, recipe: str, settings: list[Any], seed: int) -> list[str]:
    """The runs of scratch and of a recipe at their settings."""
    return [
        key(preset.home(study, name).task.name, name, Setting(s.lr, s.warmup, seed))
        for name, s in zip(("scratch", recipe), settings, strict=True)
    ]


def _outcome(recipe: str, of_scratch: str, name: str, results: Results, pace: float) -> Outcome | None:
    found = [results.get(n) for n in (of_scratch, name)]
    if None in found:
        return None
    scratch, run = found
    end, curve = scratch["curve"][-1], run["curve"]
    steps = crossing([p[STEP] for p in curve], [p[LOSS] for p in curve], end[LOSS])

    def share(of: str, of_a_step: float, count_small: bool) -> float | None:
        before = run["growth"][of] + (run["small"][of] if count_small else 0.0)
        return None if steps is None else (before + steps * of_a_step) / (end[STEP] * of_a_step)

    paid = RECIPES[recipe].brief  # a small model trained only to be grown is never free
    flops = end[FLOPS] / end[STEP]
    return Outcome(
        name, curve[0][LOSS], curve[-1][LOSS], end[LOSS],
        share("flops", flops, paid), share("flops", flops, True),
        share("seconds", pace, paid), share("seconds", pace, True),
    )  # fmt: skip
