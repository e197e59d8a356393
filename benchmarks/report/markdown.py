"""Markdown from the JSONs in benchmarks/results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = "not measured"


def read(name: str) -> dict[str, Any]:
    """One JSON of results."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def found(name: str) -> dict[str, Any] | None:
    """The same; None where nothing was measured yet."""
    return read(name) if (RESULTS / f"{name}.json").exists() else None


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is left-aligned."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def quartiles(summary: dict[str, float], form: str = "{:.2f}", scale: float = 1.0) -> str:
    """A median with its quartiles; a single measurement alone."""
    if summary["q1"] == summary["q3"]:
        return form.format(scale * summary["median"])
    middle, low, high = (form.format(scale * summary[key]) for key in ("median", "q1", "q3"))
    return f"{middle} ({low} to {high})"


def measured_on(run: dict[str, Any]) -> str:
    """Where and how, in a line."""
    hardware, versions = run["hardware"], run["versions"]
    return (
        f"({hardware['cpu']}, {hardware['threads']} threads, torch {versions['torch']}, "
        f"commit {run['commit'][:7]}, `{run['command']}`)"
    )
