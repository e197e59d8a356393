"""What growing saves: `python -m benchmarks.savings --preset cpu`.

Every recipe of every task is run at learning rates searched alike, then over seeds. What is in the JSON is
not run again, so that a run may be cut short (`--seconds`) and resumed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.measure import hardware, provenance, versions, write_whole
from benchmarks.savings.presets import PRESETS, Preset, described
from benchmarks.savings.recipes import RECIPES
from benchmarks.savings.run import work
from benchmarks.savings.search import Job, key, next_jobs, until
from benchmarks.savings.tasks import SEARCH_SEED

RESULTS = Path(__file__).parents[1] / "results"


def options_from(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.savings", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--tasks", default="", help="only these, between semicolons")
    parser.add_argument("--recipes", default="", help="scratch and these, not the preset's")
    parser.add_argument("--workers", type=int, help="processes of one thread each; 2, on a GPU 1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after this long")
    parser.add_argument("--fresh", action="store_true", help="run everything anew; in the first call only")
    parser.add_argument("--out", type=Path, help="the JSON; benchmarks/results/savings_PRESET.json")
    parser.add_argument("--folder", type=Path, help="where small models are kept; build/savings/PRESET")
    options = parser.parse_args(arguments)
    options.workers = options.workers or (1 if torch.device(options.device).type == "cuda" else 2)
    options.out = options.out or RESULTS / f"savings_{options.preset}.json"
    options.folder = options.folder or Path("build") / "savings" / options.preset
    return options


def selected(options: argparse.Namespace) -> Preset:
    """The preset with the recipes that were asked for, and scratch: savings are shares of its cost."""
    preset = PRESETS[options.preset]
    asked = names_in(options.recipes, RECIPES, "recipe")
    if not asked:
        return preset
    recipes = tuple(dict.fromkeys(("scratch", *asked)))
    return replace(preset, studies=tuple(replace(s, recipes=recipes) for s in preset.studies))


def names_in(text: str, known: Collection[str], kind: str) -> list[str]:
    """Names between semicolons; an unknown one ends the program."""
    names = [name.strip() for name in text.split(";") if name.strip()]
    for name in names:
        if name not in known:
            sys.exit(f"no {kind} {name!r}; there are: {'; '.join(dict.fromkeys(known))}")
    return names


def is_asked(job: Job, preset: Preset, tasks: Collection[str]) -> bool:
    """Whether a run belongs to one of the tasks (none: all), or to what one uses of another."""
    task, recipe, setting = job
    if not tasks or task in tasks:
        return True
    users = [s for s in preset.studies if s.task.name in tasks]
    if recipe == "scratch" and any(s.scratch == task for s in users):
        return True
    return setting.seed == SEARCH_SEED and any(s.like == task and recipe in s.recipes for s in users)


def describe(report: dict[str, Any], preset: Preset, out: Path) -> None:
    """Adds `described` to a report; ends the program where a name with runs meant something else."""
    ran = {"tasks": set[str](), "recipes": set[str]()}
    for name in report["runs"]:
        task, recipe, *_ = name.split(" / ")
        ran["tasks"].add(task)
        ran["recipes"].add(recipe)
    for kind, entries in described(preset).items():
        old = report.setdefault(kind, {})
        for name, entry in entries.items():
            if name in ran[kind] and old.get(name, entry) != entry:
                sys.exit(
                    f"{out}: {kind[:-1]} {name!r} has changed since its runs; give --fresh or another --out"
                )
        old |= entries


def forget(preset: Preset, options: argparse.Namespace) -> None:
    """Removes the JSON and the small models of earlier runs."""
    options.out.unlink(missing_ok=True)
    for task in {s.task.name for s in preset.studies}:
        for file in options.folder.glob(f"{task}-*"):
            file.unlink()


def gpu(device: str) -> dict[str, str]:
    """Name and CUDA version; nothing of a CPU."""
    if torch.device(device).type != "cuda":
        return {}
    return {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, write after every run."""
    options = options_from(arguments)
    preset = selected(options)
    tasks = names_in(options.tasks, [s.task.name for s in preset.studies], "task")
    if options.fresh and (options.tasks or options.recipes):
        sys.exit("--fresh begins the whole study anew: not with --tasks or --recipes")
    if options.fresh or not options.out.exists():  # what is kept may be of other code
        forget(preset, options)
    options.folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    describe(report, preset, options.out)
    runs = report["runs"]
    facts = provenance(sys.argv[1:] if arguments is None else arguments, "benchmarks.savings")
    facts |= {"hardware": hardware() | gpu(options.device), "versions": versions()}
    report["calls"] = [*report.get("calls", []), facts]
    report["preset"] = options.preset
    start, running = time.monotonic(), dict[Future[dict[str, Any]], Job]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context) as pool, tqdm(unit="run") as bar:
        while True:
            if time.monotonic() - start < options.seconds:
                asked = [job for job in next_jobs(preset, runs) if is_asked(job, preset, tasks)]
                waiting = [job for job in asked if job not in running.values()]
                for job in waiting[: options.workers - len(running)]:
                    task = next(s.task for s in preset.studies if s.task.name == job[0])
                    future = pool.submit(
                        work, task, RECIPES[job[1]], job[2], options.folder, options.device,
                        until(preset, job, runs),
                    )  # fmt: skip
                    running[future] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                runs[key(*job)] = future.result()
                bar.set_description(f"{key(*job)}: {runs[key(*job)]['curve'][-1][3]:.3f}")
                bar.update()
                write_whole(options.out, to_json(report))


def to_json(report: dict[str, Any]) -> str:
    """One line a run."""
    runs = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in report["runs"].items())
    rest = {k: v for k, v in report.items() if k != "runs"}
    return json.dumps(rest, indent=1)[:-2] + ',\n "runs": {\n' + runs + "\n }\n}\n"


if __name__ == "__main__":
    # large pages for the workers' tensors: 3% less time where Linux gives them on request
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    main()
