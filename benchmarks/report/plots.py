"""Plots from the JSONs; each carries the digest of what it shows, so that a test can tell an old one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import savings
from benchmarks.report.markdown import ROOT, found
from ligo_fast.bench.cases import group
from ligo_fast.bench.measure import OURS

IMAGES = ROOT / "docs" / "images"


def points() -> dict[str, list[tuple[float, float, float]]]:
    """Bytes, seconds, and the seconds of a copy that reads and writes as many, by method."""
    run: dict[str, Any] = found("scaling") or {"rows": {}}
    series: dict[str, list[tuple[float, float, float]]] = {}
    for name, case in group("scaling").items():
        part = run["rows"].get(name)
        if part and part["status"] == "measured":
            copy = part["bytes"] / 1e9 / part["copy_gb_per_second"]
            seconds = part["variants"][OURS]["seconds"]["median"]
            series.setdefault(case.method, []).append((part["bytes"], seconds, copy))
    return series


def digest(shown: object) -> str:
    """Of everything in a plot."""
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def scaling(path: Path, description: str) -> None:
    """Log-log: time to grow against the bytes of both models, with a copy's time as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = points()
    figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=110)
    for method, found_points in series.items():
        sizes, seconds, _ = zip(*found_points, strict=True)
        axes.loglog(sizes, seconds, "o-", label=f"{method}: apply_")
    copies = sorted((size, copy) for found_points in series.values() for size, _, copy in found_points)
    if copies:
        axes.loglog(*zip(*copies, strict=True), "k--", linewidth=1, label="a copy of as many bytes")
    axes.set_xlabel("bytes of both models")
    axes.set_ylabel("seconds")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Description": description, "Software": None})
    pyplot.close(figure)


@dataclass(frozen=True)
class Plot:
    """What a picture shows, and what draws it: `draw(path, description)`."""

    shown: Callable[[], Any]
    draw: Callable[[Path, str], None]

    def save(self, path: Path) -> None:
        """Draw it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.draw(path, digest(self.shown()))

    def is_current(self, path: Path) -> bool:
        """Whether a picture shows what the JSON says; one of nothing has to be absent."""
        if not (shown := self.shown()):
            return not path.exists()
        return path.exists() and digest(shown).encode() in path.read_bytes()


PLOTS = {
    IMAGES / "scaling.png": Plot(points, scaling),
    IMAGES / "savings.png": Plot(partial(savings.curves, "cpu"), savings.draw_curves("cpu")),
}
