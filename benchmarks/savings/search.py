"""Which runs come next: each recipe's learning rate and warm-up are searched alike, then seeds are run.

The search takes one seed: learning rates on a ladder of factors of two, from the study's down a rung and on
in the direction that is better; then the other warm-up. Scratch is judged by its final loss, all others by
what they spend until scratch's: their runs come one after another and stop where it is decided that they are
not the best (`Until`). The seeds that are reported took no part in the search.
"""

from __future__ import annotations

from typing import Any

from benchmarks.savings.presets import Preset, Study
from benchmarks.savings.run import Setting, Until
from benchmarks.savings.tasks import SEARCH_SEED
from ligo_fast.demo.cost import crossing

Results = dict[str, dict[str, Any]]
Job = tuple[str, str, Setting]  # task, recipe, setting


def key(task: str, recipe: str, setting: Setting) -> str:
    """The name of a run in the JSON."""
    return f"{task} / {recipe} / {setting.lr:g} / {setting.warmup} / {setting.seed}"


def next_jobs(preset: Preset, results: Results) -> list[Job]:
    """Runs that are missing and whose settings are known; empty when all is done."""
    jobs: list[Job] = []
    for study in preset.studies:
        for recipe in study.recipes:
            home = preset.home(study, recipe)
            for setting in _wanted(preset, home, recipe, results):
                job = home.task.name, recipe, setting
                if key(*job) not in results and job not in jobs:
                    jobs.append(job)
    return jobs


def chosen(preset: Preset, study: Study, recipe: str, results: Results) -> Setting | None:
    """What the search found, with the search's seed; None while runs are missing."""
    study = preset.home(study, recipe)
    if study.at is not None:
        return Setting(*study.at, SEARCH_SEED)
    if study.like:
        return chosen(preset, preset.study_of(study.like), recipe, results)
    tried = _tried(preset, study, recipe, results)
    if any(key(study.task.name, recipe, s) not in results for s in tried):
        return None
    scores = _scores(preset, study, recipe, tried, results)
    return None if scores is None else tried[scores.index(min(scores))]


def until(preset: Preset, job: Job, results: Results) -> Until | None:
    """Where a run may stop; None for one that goes to its end: those of scratch and of reported seeds."""
    task, recipe, setting = job
    if recipe == "scratch" or setting.seed != SEARCH_SEED:
        return None
    target = _target(preset, preset.study_of(task), results)
    if target is None:
        return None
    ladder = [r for r in results if r.startswith(f"{task} / {recipe} / ") and r.endswith(f" / {SEARCH_SEED}")]
    costs = [cost for name in ladder if (cost := _cost(results[name], target)) is not None]
    return Until(target, min(costs, default=float("inf")))


def _wanted(preset: Preset, study: Study, recipe: str, results: Results) -> list[Setting]:
    best = chosen(preset, study, recipe, results)
    if best is not None:
        return [Setting(best.lr, best.warmup, seed) for seed in preset.seeds]
    if study.like:
        return []
    tried = _tried(preset, study, recipe, results)
    if recipe == "scratch":
        return tried
    missing = [s for s in tried if key(study.task.name, recipe, s) not in results]
    return missing[:1] if _target(preset, study, results) is not None else []


def _tried(preset: Preset, study: Study, recipe: str, results: Results) -> list[Setting]:
    """The settings of the search as far as they follow from what is there."""

    def at(rung: int, warmup: int = preset.warmups[0]) -> Setting:
        return Setting((study.lr or preset.lr) * 2.0**rung, warmup, SEARCH_SEED)

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
    runs = [results[key(study.task.name, recipe, s)] for s in tried]
    finals = [run["curve"][-1][3] for run in runs]
    if recipe == "scratch":
        return [(0, loss) for loss in finals]
    target = _target(preset, study, results)
    if target is None:
        return None
    costs = [_cost(run, target) for run in runs]
    return [(0, cost) if cost is not None else (1, loss) for cost, loss in zip(costs, finals, strict=True)]


def _target(preset: Preset, study: Study, results: Results) -> float | None:
    """Scratch's final loss on the seed of the search; None while its best setting is not known."""
    setting = chosen(preset, study, "scratch", results)
    if setting is None:
        return None
    home = preset.home(study, "scratch")
    loss: float = results[key(home.task.name, "scratch", setting)]["curve"][-1][3]
    return loss


def _cost(run: dict[str, Any], target: float) -> float | None:
    """FLOPs of training until the target; None where it was not reached."""
    curve = run["curve"]
    return crossing([p[1] for p in curve], [p[3] for p in curve], target)
