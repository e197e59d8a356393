"""Which runs come next: each recipe's learning rate and warm-up are searched alike, then seeds are run.

The search takes one seed: learning rates on a ladder of factors of two, from the preset's down a rung and on
in the direction that is better; then the other warm-up. Scratch is judged by its final loss, all others by
what they spend until scratch's. The seeds that are reported took no part in the search.
"""

from __future__ import annotations

from typing import Any

from benchmarks.savings.presets import Preset, Study
from benchmarks.savings.run import Setting
from ligo_fast.demo.cost import crossing

Results = dict[str, dict[str, Any]]
Job = tuple[str, str, Setting]  # task, recipe, setting


def key(task: str, recipe: str, setting: Setting) -> str:
    """The name of a run in the JSON."""
    return f"{task} / {recipe} / {setting.lr:g} / {setting.warmup} / {setting.seed}"


def next_jobs(preset: Preset, results: Results) -> list[Job]:
    """Runs that are missing and whose settings are known; empty when all is done."""
    jobs = []
    for study in preset.studies:
        for recipe in study.recipes:
            wanted = _wanted(preset, study, recipe, results)
            names = [(study.task.name, recipe, s) for s in wanted]
            jobs += [n for n in names if key(*n) not in results and n not in jobs]
    return jobs


def chosen(preset: Preset, study: Study, recipe: str, results: Results) -> Setting | None:
    """What the search found, with the search's seed; None while runs are missing."""
    if study.at is not None:
        return Setting(*study.at, preset.search_seed)
    if study.like:
        searched = next(s for s in preset.studies if s.task.name == study.like)
        return chosen(preset, searched, recipe, results)
    tried = _tried(preset, study, recipe, results)
    if any(key(study.task.name, recipe, s) not in results for s in tried):
        return None
    scores = _scores(preset, study, recipe, tried, results)
    return None if scores is None else tried[scores.index(min(scores))]


def _wanted(preset: Preset, study: Study, recipe: str, results: Results) -> list[Setting]:
    best = chosen(preset, study, recipe, results)
    if best is not None:
        return [Setting(best.lr, best.warmup, seed) for seed in preset.seeds]
    return [] if study.like else _tried(preset, study, recipe, results)


def _tried(preset: Preset, study: Study, recipe: str, results: Results) -> list[Setting]:
    """The settings of the search as far as they follow from what is there."""

    def at(rung: int, warmup: int = preset.warmups[0]) -> Setting:
        return Setting(preset.lr * 2.0**rung, warmup, preset.search_seed)

    rungs = [0, -1]
    while True:
        tried = [at(r) for r in rungs]
        if any(key(study.task.name, recipe, s) not in results for s in tried):
            return tried
        scores = _scores(preset, study, recipe, tried, results)
        if scores is None:
            return tried
        best = rungs[scores.index(min(scores))]
        beyond = best + 1 if best == max(rungs) else best - 1
        if best not in (min(rungs), max(rungs)) or abs(beyond) > preset.rungs:
            return [*tried, at(best, preset.warmups[1])]
        rungs.append(beyond)


def _scores(
    preset: Preset, study: Study, recipe: str, tried: list[Setting], results: Results
) -> list[tuple[int, float]] | None:
    """Lower is better: FLOPs to scratch's final loss, or beyond all of them the final loss."""
    curves = [results[key(study.task.name, recipe, s)]["curve"] for s in tried]
    finals = [curve[-1][3] for curve in curves]
    if recipe == "scratch":
        return [(0, loss) for loss in finals]
    scratch = chosen(preset, study, "scratch", results)
    if scratch is None:
        return None
    target = results[key(study.task.name, "scratch", scratch)]["curve"][-1][3]
    costs = [crossing([p[1] for p in c], [p[3] for p in c], target) for c in curves]
    return [(0, cost) if cost is not None else (1, loss) for cost, loss in zip(costs, finals, strict=True)]
