"""Plots from the JSONs; each carries the digest of what it shows, so that a test can tell an old one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report.markdown import ROOT, found
from ligo_fast.bench.cases import group
from ligo_fast.bench.measure import OURS

IMAGES = ROOT / "docs" / "images"


def points() -> dict[str, list[tuple[float, float, float]]]:
    """Bytes, seconds, and the seconds of a copy that reads and writes as many, by method."""
    run: dict[str, Any] = found("scaling") or {"rows": {}}
    series: dict[str, list[tuple[float, float, float]]] = {}
    for name, case in group("scaling").items():
        if part := run["rows"].get(name):
            copy = part["bytes"] / 1e9 / part["copy_gb_per_second"]
            seconds = part["variants"][OURS]["seconds"]["median"]
            series.setdefault(case.method, []).append((part["bytes"], seconds, copy))
    return series


def digest() -> str:
    """Of everything in the plot."""
    return hashlib.sha256(json.dumps(points()).encode()).hexdigest()[:16]


def scaling(path: Path) -> None:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Description": digest(), "Software": None})
    pyplot.close(figure)


PLOTS: dict[Path, Callable[[Path], None]] = {IMAGES / "scaling.png": scaling}


def is_current(path: Path) -> bool:
    """Whether the plot shows what the JSON says; one of nothing has to be absent."""
    if not points():
        return not path.exists()
    return path.exists() and digest().encode() in path.read_bytes()
