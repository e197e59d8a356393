"""The tables of the GPU check, from its JSON; without one every row says "not measured"."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import torch

from benchmarks import gpu_goals as goals
from ligo_fast.bench.cases import Case, group
from ligo_fast.bench.measure import PLAIN

GROWTH, SELECT = group("growth"), group("select")  # the rows of a full run
WORK = {"apply": "`apply_`", "pullback": "pull-back"}
GROWTH_HEADER = [
    "", "ms (quartiles)", "GB/s", "TFLOP/s", "of the floor, goal 70%", "over published, goal 10x",
    "over compiled, goal 2x", "over plain torch", "launches", "extra memory", "host", "host waits",
    "CUDA graph",
]  # fmt: skip
STEP_HEADER = ["", "forward + backward", "with `GrowthOptimizer.step()`", "ratio, goal at most 1.03"]
SELECT_HEADER = [
    "", "ms (quartiles)", "GB/s", "rate / copy's, goal 92%", "over `_foreach_copy_`", "over index_select",
    "over compiled", "launches, goal 1", "host", "CUDA graph",
]  # fmt: skip
# Learning with released gradients, by name of the pair in `learning_memory.PAIRS`.
LEARNING = {"7b": "Learning a Llama-style 7B from 1.1B, bfloat16, 20 steps of 4096 tokens, checkpointing"}
LEARNING_HEADER = ["", "peak memory", "on paper", "time per step", "loss, first to last step"]
NOT_MEASURED = goals.NOT_MEASURED

Rows = list[list[str]]


def title(case: Case) -> str:
    """Models and weights; float32 ones are multiplied as tf32."""
    weights = {torch.float32: "float32, tf32 products", torch.bfloat16: "bfloat16"}
    return f"{case.title}, {weights[case.dtype]}"


def milliseconds(seconds: dict[str, float]) -> str:
    middle, low, high = (f"{1e3 * seconds[key]:.3g}" for key in ("median", "q1", "q3"))
    return f"{middle} ({low} to {high})"


def growth_rows(report: dict[str, Any] | None) -> Rows:
    """One row for each case and direction."""
    return [
        [f"{title(case)}: {direction}", *_growth_cells(_part(report, name, work))]
        for name, case in GROWTH.items()
        for work, direction in WORK.items()
    ]


def _growth_cells(part: dict[str, Any]) -> list[str]:
    if part.get("status") != "measured":
        return [_why_not(part)] + [""] * (len(GROWTH_HEADER) - 2)
    variants = part["variants"]
    ours = variants["ours"]

    def over(peer: str, goal: goals.Goal | None = None) -> str:
        if peer not in part["speed-up"]:
            return NOT_MEASURED
        times = part["speed-up"][peer]["median"]
        return goal.mark(f"{times:.1f}x", times) if goal else f"{times:.1f}x"

    def fact(key: str, kind: str) -> str:
        return kind.format(ours[key]) if ours.get(key) is not None else NOT_MEASURED

    waits, share = ours.get("host_sync", NOT_MEASURED), ours["floor / time"]["median"]
    return [
        milliseconds(ours["seconds"]),
        f"{ours['gb_per_second']:.0f}",
        f"{ours['tflops']:.1f}",
        goals.FLOOR.mark(f"{share:.0%}", share),
        over("published", goals.PUBLISHED),
        over("compiled", goals.COMPILED),
        over(PLAIN),
        fact("launches", "{}"),
        NOT_MEASURED if ours.get("extra_bytes") is None else f"{ours['extra_bytes'] / 2**20:.0f} MiB",
        goals.HOST.mark(fact("host_ms", "{:.2f} ms"), ours.get("host_ms")),
        {True: "yes", False: "no"}.get(waits, str(waits)),
        part["graph"] or NOT_MEASURED,
    ]


def step_rows(report: dict[str, Any] | None) -> Rows:
    """One row for each learning step."""
    rows = []
    for name, case in GROWTH.items():
        if case.batch is not None:
            part = _part(report, name, "step")
            tokens = f", {part['tokens']} tokens" if "tokens" in part else ""
            rows.append([f"{title(case)}{tokens}", *_step_cells(part, name.startswith("gpt2"))])
    return rows


def _step_cells(part: dict[str, Any], has_goal: bool) -> list[str]:
    if part.get("status") != "measured":
        return [_why_not(part), "", ""]
    r = part["learning / plain"]
    ratio = f"{r['median']:.3f} ({r['q1']:.3f} to {r['q3']:.3f})"
    ratio = goals.STEP.mark(ratio, r["median"] if has_goal else None)
    return [*(f"{milliseconds(part['variants'][v]['seconds'])} ms" for v in ("plain", "learning")), ratio]


def select_rows(report: dict[str, Any] | None) -> Rows:
    """One row for each method that only selects."""
    found = {} if report is None else report.get("select", {})
    rows = []
    for name, case in SELECT.items():
        first = f"{case.title}, float32: `{case.method}`"
        rows.append([first, *_select_cells(found.get(name, {}))])
    return rows


def _select_cells(part: dict[str, Any]) -> list[str]:
    if part.get("status") != "measured":
        return [_why_not(part)] + [""] * (len(SELECT_HEADER) - 2)
    facts, over, rate = part["facts"], part["speed-up"], part["of copy"]["median"]
    return [
        milliseconds(part["seconds"]["ours"]),
        f"{part['gb_per_second']:.0f}",
        goals.COPY.mark(f"{rate:.0%}", rate),
        *(
            f"{over[p]['median']:.1f}x" if p in over else NOT_MEASURED
            for p in ("foreach", "index", "compiled")
        ),
        goals.LAUNCHES.mark(str(facts.get("launches", NOT_MEASURED)), facts.get("launches")),
        f"{facts['host_ms']:.2f} ms" if "host_ms" in facts else NOT_MEASURED,
        part["graph"] or NOT_MEASURED,
    ]


def learning_rows(report: dict[str, Any] | None) -> Rows:
    """One row for each learning with `release_grads`."""
    rows = []
    for name, first in LEARNING.items():
        part = _part(report, f"learning {name}", "learning")
        cells = [_why_not(part), "", "", ""]
        if part.get("status") == "measured":
            cells = [
                f"{part['peak'] / 1e9:.1f} GB",
                f"{part['on paper'] / 1e9:.1f} GB",
                f"{part['step seconds']['median']:.2f} s",
                f"{part['losses'][0]:.2f} to {part['losses'][-1]:.2f}",
            ]
        rows.append([first, *cells])
    return rows


def _part(report: dict[str, Any] | None, name: str, part: str) -> dict[str, Any]:
    if report is None:
        return {}
    row = report["rows"].get(name, {})
    found: dict[str, Any] = row.get(part, {k: row[k] for k in ("status", "reason") if k in row})
    return found


def _why_not(part: dict[str, Any]) -> str:
    """ "not measured", and the reason where there is one."""
    reason = part.get("reason")
    return f"{NOT_MEASURED}: {part['status']}, {reason}".replace("|", "/") if reason else NOT_MEASURED


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    _print(GROWTH_HEADER, growth_rows(report))
    _print(SELECT_HEADER, select_rows(report))
    _print(STEP_HEADER, step_rows(report))
    _print(LEARNING_HEADER, learning_rows(report))


def _print(header: list[str], rows: Rows) -> None:
    """With rich where it is, else in columns."""
    if importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.table import Table

        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 240).print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def environment(report: dict[str, Any]) -> str:
    """Where a report was made, in a line."""
    hardware, versions = report["hardware"], report["versions"]
    return (
        f"{hardware['gpu']}, driver {hardware['driver']}, CUDA {versions['cuda']}, "
        f"torch {versions['torch']}, triton {versions['triton']}, commit {report['commit'][:7]}"
    )
