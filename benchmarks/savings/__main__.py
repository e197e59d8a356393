"""What growing saves: `python -m benchmarks.savings --preset cpu`.

Every recipe of every task is run at learning rates searched alike, then over seeds. What is in the JSON is
not run again, so that a run may be cut short (`--seconds`) and resumed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measure import hardware, provenance, versions
from benchmarks.savings.presets import PRESETS, Preset
from benchmarks.savings.recipes import RECIPES
from benchmarks.savings.run import work
from benchmarks.savings.search import Job, key, next_jobs

RESULTS = Path(__file__).parents[1] / "results"


def options_from(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.savings", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--tasks", default="", help="only these, between semicolons")
    parser.add_argument("--recipes", default="", help="these instead of the preset's, between semicolons")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after this long")
    parser.add_argument("--out", type=Path, help="the JSON; benchmarks/results/savings_PRESET.json")
    parser.add_argument("--folder", type=Path, help="where small models are kept; build/savings/PRESET")
    options = parser.parse_args(arguments)
    options.out = options.out or RESULTS / f"savings_{options.preset}.json"
    options.folder = options.folder or Path("build") / "savings" / options.preset
    return options


def selected(options: argparse.Namespace) -> Preset:
    """The preset, cut down to what was asked for."""
    preset = PRESETS[options.preset]
    tasks, recipes = (tuple(filter(None, text.split(";"))) for text in (options.tasks, options.recipes))
    studies = tuple(
        replace(s, recipes=recipes or s.recipes) for s in preset.studies if not tasks or s.task.name in tasks
    )
    return replace(preset, studies=studies)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, write after every run."""
    options = options_from(arguments)
    preset = selected(options)
    options.folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    runs = report["runs"]
    facts = provenance(sys.argv[1:] if arguments is None else arguments, "benchmarks.savings")
    report["calls"] = [*report.get("calls", []), facts | {"hardware": hardware(), "versions": versions()}]
    report["preset"] = options.preset
    start, running = time.monotonic(), dict[Future[dict[str, Any]], Job]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context) as pool, tqdm(unit="run") as bar:
        while True:
            if time.monotonic() - start < options.seconds:
                waiting = [job for job in next_jobs(preset, runs) if job not in running.values()]
                for job in waiting[: options.workers - len(running)]:
                    task = next(s.task for s in preset.studies if s.task.name == job[0])
                    future = pool.submit(work, task, RECIPES[job[1]], job[2], options.folder, options.device)
                    running[future] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                runs[key(*job)] = future.result()
                bar.set_description(f"{key(*job)}: {runs[key(*job)]['curve'][-1][3]:.3f}")
                bar.update()
                options.out.write_text(to_json(report))


def to_json(report: dict[str, Any]) -> str:
    """One line a run."""
    runs = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in report["runs"].items())
    rest = {k: v for k, v in report.items() if k != "runs"}
    return json.dumps(rest, indent=1)[:-2] + ',\n "runs": {\n' + runs + "\n }\n}\n"


if __name__ == "__main__":
    main()
