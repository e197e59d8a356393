"""Two pictures: the loss over all FLOPs spent, and the learned depth and width maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .cost import Cost
from .report import Run
from .train import Point

GREY = "0.45"
BLACK = "0.1"
COLORS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#a6761d", "#66a61e"]
DEPTH_MAPS = {
    "q": "h.*.attn.c_attn.weight[q]",
    "v": "h.*.attn.c_attn.weight[v]",
    "attention out": "h.*.attn.c_proj.weight",
    "ffn in": "h.*.mlp.c_fc.weight",
    "ffn out": "h.*.mlp.c_proj.weight",
}
WIDTH_MAPS = ["embed", "ffn"]
STYLE = {
    "font.size": 10,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
}


def plot_curves(path: Path, runs: Sequence[Run], small: Sequence[Point]) -> None:
    """Validation loss over FLOPs; grown models start where the small one and the operator ended."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        draw_curve(axes, small, Cost(), label="small model", color=GREY, linestyle=(0, (4, 2)))
        colors = iter(COLORS)
        for run in runs:
            start = run.growth + (small[-1].cost if run.uses_small else Cost())
            color = next(colors) if run.uses_small else BLACK
            draw_curve(axes, run.curve, start, label=run.method, color=color)
        target = runs[0].curve[-1].loss
        axes.axhline(target, color=BLACK, linewidth=0.8, linestyle=":")
        axes.annotate(
            "scratch's final loss", (0, target), xytext=(2, -11), textcoords="offset points", fontsize=8
        )
        finals = [run.curve[-1].loss for run in runs]
        lowest, highest = min(finals), small[-1].loss
        room = max(highest - lowest, 0.1)
        axes.set_ylim(lowest - 0.3 * room, highest + 2 * room)
        axes.set_xlim(left=0)
        axes.set_xlabel("TFLOP spent: small model, operator and training")
        axes.set_ylabel("validation loss (nats a byte)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path)


def draw_curve(axes: Any, curve: Sequence[Point], start: Cost, **style: Any) -> None:
    """One curve, moved right by what was spent before it."""
    x = [(start + point.cost).flops / 1e12 for point in curve]
    axes.plot(x, [point.loss for point in curve], linewidth=1.8, **style)


def plot_maps(path: Path, depth: Mapping[str, Tensor], width: Mapping[str, Tensor]) -> None:
    """Heat maps of D (large layers from small ones) and of C (new units from old ones)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 6.2), layout="constrained")
        rows: Any = figure.subfigures(2, 1, height_ratios=[1, 1.5])
        top, bottom = rows
        matrices = {f"D, {title}": depth[name] for title, name in DEPTH_MAPS.items()}
        draw_matrices(top, matrices, "small layer", "large layer")
        for part, axis in zip(bottom.subfigures(1, len(WIDTH_MAPS)), WIDTH_MAPS, strict=True):
            if axis in width:
                old_units = width[axis].shape[1]
                draw_matrices(part, {f"C, {axis}": width[axis][old_units:]}, "old unit", "new unit")
        figure.savefig(path)


def draw_matrices(figure: SubFigure, matrices: Mapping[str, Tensor], x: str, y: str) -> None:
    """A row of heat maps with one colour scale, white at zero."""
    values = {title: matrix.detach().cpu().numpy() for title, matrix in matrices.items()}
    limit = max(abs(matrix).max() for matrix in values.values())
    scale: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    panels = np.ravel(figure.subplots(1, len(values), squeeze=False))
    for axes, (title, matrix) in zip(panels, values.items(), strict=True):
        image = axes.imshow(matrix, aspect="auto", interpolation="none", **scale)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[0].set_ylabel(y)
    figure.colorbar(image, ax=list(panels))
