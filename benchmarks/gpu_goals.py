"""The goals of the GPU's rows, and whether a report meets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"


@dataclass(frozen=True)
class Goal:
    """A bound on a measured number."""

    name: str
    bound: float
    at_least: bool

    def verdict(self, value: float | None) -> str:
        if value is None:
            return NOT_MEASURED
        return MET if (value >= self.bound if self.at_least else value <= self.bound) else MISSED

    def mark(self, text: str, value: float | None) -> str:
        """A table's cell with the verdict."""
        return text if value is None else f"{text}, {self.verdict(value)}"

    def __str__(self) -> str:
        return f"{self.name} at {'least' if self.at_least else 'most'} {self.bound:g}"


FLOOR = Goal("share of the floor", 0.7, True)
PUBLISHED = Goal("over the published sequence", 10, True)
COMPILED = Goal("over the published sequence, compiled", 2, True)
HOST = Goal("milliseconds of the host", 0.1, False)
STEP = Goal("learning step over a plain one", 1.03, False)
COPY = Goal("rate over a copy's", 0.92, True)
LAUNCHES = Goal("launches of a selection", 1, False)


def growth(part: dict[str, Any]) -> list[tuple[Goal, float | None]]:
    """Of growing or of its pull-back."""
    measured = part.get("status") == "measured"
    ours = part["variants"]["ours"] if measured else {}
    over = {name: found["median"] for name, found in part.get("speed-up", {}).items()}
    return [
        (FLOOR, ours["floor / time"]["median"] if measured else None),
        (PUBLISHED, over.get("published")),
        (COMPILED, over.get("compiled")),
        (HOST, ours.get("host_ms")),
    ]


def step(part: dict[str, Any]) -> list[tuple[Goal, float | None]]:
    """Of a learning step."""
    return [(STEP, part["learning / plain"]["median"] if part.get("status") == "measured" else None)]


def selection(part: dict[str, Any]) -> list[tuple[Goal, float | None]]:
    """Of training-free growth."""
    measured = part.get("status") == "measured"
    return [
        (COPY, part["of copy"]["median"] if measured else None),
        (LAUNCHES, part["facts"].get("launches") if measured else None),
    ]


def verdicts(report: dict[str, Any], rows: list[str], selections: list[str]) -> list[dict[str, Any]]:
    """Every goal of every row that a full run has: goal, row, value and verdict."""
    found: list[tuple[str, Goal, float | None]] = []
    for name in rows:
        row = report["rows"].get(name, {})
        for work in ("apply", "pullback"):
            found += [(f"{name}: {work}", *pair) for pair in growth(row.get(work, {}))]
        if name.startswith("gpt2"):  # GPT-2 medium, 8192 tokens
            found += [(f"{name}: step", *pair) for pair in step(row.get("step", {}))]
    for name in selections:
        part = report.get("select", {}).get(name, {})
        found += [(f"select {name}", *pair) for pair in selection(part)]
    return [
        {"row": row, "goal": str(goal), "value": value, "verdict": goal.verdict(value)}
        for row, goal, value in found
    ]


def summary(found: list[dict[str, Any]]) -> str:
    """How many are met, missed and not measured."""
    count = {verdict: sum(f["verdict"] == verdict for f in found) for verdict in (MET, MISSED, NOT_MEASURED)}
    return "goals: " + ", ".join(f"{n} {verdict}" for verdict, n in count.items())
