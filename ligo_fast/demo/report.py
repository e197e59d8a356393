"""The table and the JSON: what each method reached, and at what cost."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich import box
from rich.table import Table

from .cost import Cost, crossing, saved
from .train import Point


@dataclass(frozen=True)
class Run:
    """One method: the cost of growing, the operator's learning losses, and the training that followed."""

    method: str
    growth: Cost
    losses: list[float]
    curve: list[Point]
    uses_small: bool


@dataclass(frozen=True)
class Row:
    """One line of the table; costs and savings are None where the target was not reached.

    ``flops``, ``seconds`` and ``saved`` count the small model, the operator and training;
    ``saved_small_free`` leaves the small model out, as papers do.
    """

    method: str
    initial_loss: float
    final_loss: float
    flops: float | None
    seconds: float | None
    saved: float | None
    saved_small_free: float | None


def compare(runs: Sequence[Run], small: Cost) -> list[Row]:
    """Each run's cost to come down to the final loss of the first run, which is scratch's."""
    target = runs[0].curve[-1].loss
    scratch, _ = cost_to_target(runs[0], target)
    assert scratch is not None
    rows = []
    for run in runs:
        flops, seconds = cost_to_target(run, target)
        spent = small if run.uses_small else Cost()
        total = None if flops is None else flops + spent.flops
        rows.append(
            Row(
                method=run.method,
                initial_loss=run.curve[0].loss,
                final_loss=run.curve[-1].loss,
                flops=total,
                seconds=None if seconds is None else seconds + spent.seconds,
                saved=saved(total, scratch),
                saved_small_free=saved(flops, scratch),
            )
        )
    return rows


def cost_to_target(run: Run, target: float) -> tuple[float | None, float | None]:
    """FLOPs and seconds of growing and training until the target; the small model's are not in them."""
    costs = [run.growth + point.cost for point in run.curve]
    losses = [point.loss for point in run.curve]
    return crossing([c.flops for c in costs], losses, target), crossing(
        [c.seconds for c in costs], losses, target
    )


def make_table(rows: Sequence[Row], small: Point) -> Table:
    """The comparison as a table for the terminal."""
    table = Table(
        title=f"Cost to reach scratch's final validation loss, {rows[0].final_loss:.3f} nats a byte",
        caption=(
            f"The small model's loss is {small.loss:.3f}, for {small.cost.flops / 1e12:.2f} TFLOP in "
            f"{small.cost.seconds:.0f} s. TFLOP and time count it, the operator and training; "
            "saved = 1 - F / F_scratch."
        ),
        box=box.SIMPLE_HEAD,
    )
    table.add_column("method", no_wrap=True)
    headers = ["loss after\ngrowth", "final\nloss", "TFLOP", "time", "saved", "saved, without\nsmall model"]
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.method,
            f"{row.initial_loss:.3f}",
            f"{row.final_loss:.3f}",
            "" if row.flops is None else f"{row.flops / 1e12:.2f}",
            "" if row.seconds is None else f"{row.seconds:.0f} s",
            "" if row.saved is None else f"{row.saved:.1%}",
            "not reached" if row.saved_small_free is None else f"{row.saved_small_free:.1%}",
        )
    return table


def as_json(**content: Any) -> str:
    """The run with the machine and the versions that made it; dataclasses become objects."""
    return json.dumps({"environment": environment(), **content}, indent=1, default=asdict)


def environment() -> dict[str, str | int | None]:
    """Hardware, versions and commit."""
    return {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "commit": commit(),
    }


def hardware() -> str:
    """The GPU's name, or the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, marked when files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
