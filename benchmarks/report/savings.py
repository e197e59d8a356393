"""Tables and curves of the savings study."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.report.markdown import NOT_MEASURED, found, table
from benchmarks.savings.presets import PRESETS, described
from benchmarks.savings.recipes import RECIPES
from benchmarks.savings.summary import FLOPS, LOSS, STEP, Row, summarize
from ligo_fast.demo.plots import BLACK, COLORS, STYLE

DRAWN = (
    "scratch", "random", "stack", "net2net+stack", "net2net+stack, noise 0.5", "ligo, as published",
    "ligo",
)  # fmt: skip
EARLY = (20, 40, 100)  # steps after growth whose losses are told


def rows_of(preset: str) -> list[Row]:
    """Of every recipe that has run with all seeds."""
    return summarize(PRESETS[preset], _runs(preset))


def overview(preset: str, tasks: Collection[str] = ()) -> str:
    """Recipes by tasks: saved with the small model free, the mean over seeds and their range."""
    rows = [row for row in rows_of(preset) if row.study == row.task and (not tasks or row.task in tasks)]
    names = list(dict.fromkeys(row.task for row in rows))
    cells = {(row.recipe, row.task): spread(row, "flops") for row in rows}
    recipes = [r for r in RECIPES if any((r, t) in cells for t in names)]
    body = [[f"`{r}`", *(cells.get((r, t), "") for t in names)] for r in recipes]
    return _with_source(preset, ["saved, small model free", *names], body)


def details(preset: str, study: str) -> str:
    """One study: settings found, losses, savings in both metrics, with and without the small model's cost."""
    body = [
        [
            f"`{row.recipe}`",
            f"{row.setting.lr:g}, {row.setting.warmup}",
            f"{row.mean(lambda o: o.initial_loss):.3f}",
            f"{row.mean(lambda o: o.final_loss):.3f}",
            spread(row, "flops"),
            spread(row, "all_flops"),
            speed_up(row, "flops"),
            speed_up(row, "all_flops"),
            spread(row, "seconds"),
        ]
        for row in rows_of(preset)
        if row.study == study
    ]
    header = [
        "", "LR, warm-up", "loss after growth", "final loss", "saved, small free", "saved",
        "speed-up, small free", "speed-up", "time saved, small free",
    ]  # fmt: skip
    return _with_source(preset, header, body)


def moments() -> str:
    """What carrying the optimizer's moments over is worth."""
    runs = _runs("moments")
    body = []
    for row in rows_of("moments"):
        if row.recipe == "scratch":
            continue
        curves = [runs[o.run]["curve"] for o in row.outcomes]
        early = [f"{mean(p[LOSS] for c in curves for p in c if p[STEP] == step):.3f}" for step in EARLY]
        method, _, policy = row.recipe.rpartition(", ")
        losses = [
            f"{row.mean(lambda o: o.initial_loss):.3f}",
            *early,
            f"{row.mean(lambda o: o.final_loss):.3f}",
        ]
        body.append([f"`{method}`, `{policy}`", spread(row, "flops"), *losses])
    header = ["method, policy", "saved, small free", "loss after growth"]
    header += [f"{EARLY[0]} steps later", *map(str, EARLY[1:]), "at the end"]
    return _with_source("moments", header, body)


def spread(row: Row, what: str) -> str:
    """Mean and range of 1 - F / F_scratch."""
    shares = row.saved(what)
    if shares is None:
        missed = sum(getattr(o, what) is None for o in row.outcomes)
        return f"not reached ({missed} of {len(row.outcomes)})"
    return f"{mean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def speed_up(row: Row, what: str) -> str:
    """F_scratch / F - 1 of the mean F."""
    shares = row.saved(what)
    if shares is None:
        return "not reached"
    spent = 1 - mean(shares)
    return f"{1 / spent - 1:+.0%}" if spent > 0 else "target met at once"


def _with_source(preset: str, header: list[str], body: list[list[str]]) -> str:
    report = found(f"savings_{preset}")
    if report is None or not body:
        return NOT_MEASURED
    calls = report["calls"]
    last = calls[-1]
    commits = ", ".join(dict.fromkeys(call["commit"][:7] for call in calls))
    commands = "; ".join(dict.fromkeys(f"`{call['command']}`" for call in calls))
    hardware, torch = last["hardware"], f"torch {last['versions']['torch']}"
    machine = f"{hardware['gpu']}, CUDA {hardware['cuda']}" if "gpu" in hardware else hardware["cpu"]
    changed = " with changed files" if any(call["dirty"] for call in calls) else ""
    where = f"{machine}, {torch}, commit {commits}{changed}, {commands}"
    return f"{table(header, body)}\n\n({where})"


def _runs(preset: str) -> dict[str, Any]:
    """The runs of a preset; ends the program where its JSON is of other tasks or recipes."""
    report = found(f"savings_{preset}")
    if report is None:
        return {}
    for kind, entries in described(PRESETS[preset]).items():
        if other := [name for name, entry in entries.items() if report[kind].get(name) != entry]:
            sys.exit(
                f"savings_{preset}.json: the {kind} {', '.join(other)} are not the preset's: measure anew"
            )
    return report["runs"]  # type: ignore[no-any-return]


def curves(preset: str) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Of each task and recipe: TFLOP of growing and training, validation loss; the mean over seeds."""
    runs, found_curves = _runs(preset), dict[str, dict[str, list[tuple[float, float]]]]()
    for row in rows_of(preset):
        if row.recipe in DRAWN and row.study == row.task:
            seeds = [runs[o.run] for o in row.outcomes]
            growth = mean(run["growth"]["flops"] for run in seeds)
            points = zip(*(run["curve"] for run in seeds), strict=True)
            line = [((growth + p[0][FLOPS]) / 1e12, mean(q[LOSS] for q in p)) for p in points]
            found_curves.setdefault(row.task, {})[row.recipe] = line
    return found_curves


def draw_curves(preset: str) -> Callable[[Path, str], None]:
    """Validation loss over FLOPs, the small model free, a panel for each task."""

    def draw(path: Path, description: str) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        tasks = curves(preset)
        with matplotlib.rc_context(STYLE | {"font.size": 8, "savefig.dpi": 110}):
            figure = Figure(figsize=(9, 2.7 * -(-len(tasks) // 3)), layout="constrained")
            panels = figure.subplots(-(-len(tasks) // 3), 3, squeeze=False).ravel()
            for axes, (task, lines) in zip(panels, tasks.items(), strict=False):
                _panel(axes, task, lines)
            for axes in panels[len(tasks) :]:
                axes.axis("off")
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
            figure.savefig(path, metadata={"Description": description, "Software": None})

    return draw


def _panel(axes: Any, task: str, lines: dict[str, list[tuple[float, float]]]) -> None:
    styles = dict(zip(DRAWN, [BLACK, *COLORS], strict=False))
    for recipe, line in lines.items():
        axes.plot(*zip(*line, strict=True), color=styles[recipe], label=recipe, linewidth=1.3)
    finals = [line[-1][1] for line in lines.values()]
    target = lines["scratch"][-1][1]
    axes.axhline(target, color=BLACK, linewidth=0.7, linestyle=":")
    axes.set_ylim(min(finals) - 0.05, target + 4 * (target - min(finals) + 0.05))
    axes.set_xlim(left=0)
    axes.set_title(task)
    axes.set_xlabel("TFLOP of growing and training")
    axes.set_ylabel("validation loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
