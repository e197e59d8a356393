"""Processes with a limit on their time, run side by side; what becomes of each is recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass
class Job:
    """A process of a stage; `limit` in seconds."""

    name: str
    command: list[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)


def run_together(jobs: Sequence[Job], deadline: float) -> list[dict[str, Any]]:
    """Run jobs at the same time: status, seconds, the last lines of what each said."""
    started = monotonic()
    running = []
    for job in jobs:
        said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read and closed below
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | job.environment
        process = subprocess.Popen(
            job.command,
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        running.append((job, process, said))
    results = []
    for job, process, said in running:
        limit = min(started + job.limit, deadline) - monotonic()
        try:
            code = process.wait(max(limit, 0.1))
            status = "failed" if code else "passed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own group: a sanitizer's child too
            process.wait()
            status = "timed out"
        said.seek(0)
        tail = said.read().splitlines()[-15:]
        said.close()
        results.append({"stage": job.name, "status": status, "seconds": _since(started), "tail": tail})
        print(f"{job.name}: {status}, {results[-1]['seconds']} s", flush=True)
        if status != "passed":
            print("  " + "\n  ".join(tail), flush=True)
    return results


def _since(start: float) -> float:
    return round(monotonic() - start, 1)
