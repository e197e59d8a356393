"""Tables and pictures of the savings study, from its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.savings.presets import PRESETS, Preset
from benchmarks.savings.recipes import RECIPES
from benchmarks.savings.run import Setting
from benchmarks.savings.search import key
from benchmarks.savings.summary import FLOPS, LOSS, Row, summarize
from ligo_fast.demo.plots import BLACK, COLORS, STYLE

RESULTS = Path(__file__).parents[1] / "results"
DRAWN = (
    "scratch", "random", "stack", "net2net+stack", "net2net+stack, noise 0.5", "ligo, as published", "ligo",
)  # fmt: skip


def read(preset: str) -> dict[str, Any]:
    """The JSON of a preset; without runs where there is none yet."""
    path = RESULTS / f"savings_{preset}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    return found


def overview(preset: str) -> str:
    """Recipes by tasks: saved with the small model free, the mean over seeds and their range."""
    rows = summarize(PRESETS[preset], read(preset)["runs"])
    rows = [row for row in rows if row.study == row.task]
    tasks = list(dict.fromkeys(row.task for row in rows))
    cells = {(row.recipe, row.task): spread(row, "flops") for row in rows}
    recipes = [r for r in RECIPES if r != "scratch" and any((r, t) in cells for t in tasks)]
    return markdown(
        ["saved, small model free", *tasks],
        [[f"`{r}`", *(cells.get((r, t), "") for t in tasks)] for r in recipes],
    )


def details(preset: str, study: str) -> str:
    """One study: settings found, losses, savings in both metrics, with and without the small model's cost."""
    rows = [row for row in summarize(PRESETS[preset], read(preset)["runs"]) if row.study == study]
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
        for row in rows
    ]
    header = [
        "", "LR, warm-up", "loss after growth", "final loss", "saved, small free", "saved",
        "speed-up, small free", "speed-up", "time saved, small free",
    ]  # fmt: skip
    return markdown(header, body)


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


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def where(preset: str) -> str:
    """Hardware, versions, commits and commands."""
    calls = read(preset).get("calls", [])
    if not calls:
        return "(not measured)"
    last = calls[-1]
    commits = ", ".join(dict.fromkeys(call["commit"][:7] for call in calls))
    commands = "; ".join(dict.fromkeys(f"`{call['command']}`" for call in calls))
    torch = last["versions"]["torch"]
    return f"({last['hardware']['cpu']}, torch {torch}, commit {commits}, {commands})"


def curves(preset: str, path: Path) -> None:
    """Validation loss over FLOPs, the small model free, a panel for each task; the mean over seeds."""
    chosen, runs = PRESETS[preset], read(preset)["runs"]
    rows = [row for row in summarize(chosen, runs) if row.study == row.task]
    tasks = list(dict.fromkeys(row.task for row in rows))
    with matplotlib.rc_context(STYLE | {"font.size": 8}):
        figure = Figure(figsize=(9, 2.7 * -(-len(tasks) // 3)), layout="constrained")
        panels = figure.subplots(-(-len(tasks) // 3), 3, squeeze=False).ravel()
        for panel, task in zip(panels, tasks, strict=False):
            _panel(panel, chosen, [row for row in rows if row.task == task], runs)
        for panel in panels[len(tasks) :]:
            panel.axis("off")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(path)


def _panel(axes: Any, preset: Preset, rows: list[Row], runs: dict[str, Any]) -> None:
    styles = dict(zip(DRAWN, [BLACK, *COLORS], strict=False))
    for row in rows:
        if row.recipe not in styles:
            continue
        s = row.setting
        seeds = [runs[key(row.task, row.recipe, Setting(s.lr, s.warmup, n))] for n in preset.seeds]
        growth = mean(run["growth"]["flops"] for run in seeds)
        points = zip(*(run["curve"] for run in seeds), strict=True)
        x, y = zip(*((growth + p[0][FLOPS], mean(q[LOSS] for q in p)) for p in points), strict=True)
        axes.plot([v / 1e12 for v in x], y, color=styles[row.recipe], label=row.recipe, linewidth=1.3)
    target = rows[0].mean(lambda o: o.target)
    finals = [row.mean(lambda o: o.final_loss) for row in rows]
    axes.axhline(target, color=BLACK, linewidth=0.7, linestyle=":")
    axes.set_ylim(min(finals) - 0.05, target + 4 * (target - min(finals) + 0.05))
    axes.set_xlim(left=0)
    axes.set_title(rows[0].task)
    axes.set_xlabel("TFLOP of growing and training")
    axes.set_ylabel("validation loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
