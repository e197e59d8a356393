"""Processes with a limit on their time, run side by side; what becomes of each is recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass
class Job:
    """A process of a stage; `limit` in seconds."""

    name: str
    command: list[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)


def run_together(jobs: Sequence[Job], deadline: float, log: Path | None = None) -> list[dict[str, Any]]:
    """Run jobs at the same time: status, seconds, the last lines of what each said.

    All that one which did not pass said is added to `log`.
    """
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
    ended = _wait([(process, min(started + job.limit, deadline)) for job, process, _ in running])
    results = []
    for (job, _, said), (status, seconds) in zip(running, ended, strict=True):
        said.seek(0)
        text = said.read()
        said.close()
        tail = text.splitlines()[-15:]
        if status != "passed" and log is not None:
            with log.open("a") as file:
                file.write(f"==== {job.name}: {status}\n{text}\n")
        seconds = round(seconds - started, 1)
        results.append({"stage": job.name, "status": status, "seconds": seconds, "tail": tail})
        print(f"{job.name}: {status}, {seconds} s", flush=True)
        if status != "passed":
            print("  " + "\n  ".join(tail), flush=True)
    return results


def _wait(processes: Sequence[tuple[subprocess.Popen[str], float]]) -> list[tuple[str, float]]:
    """What becomes of each process, by when it has to end; and when it ended."""
    found: dict[int, tuple[str, float]] = {}
    while len(found) < len(processes):
        for n, (process, limit) in enumerate(processes):
            if n in found:
                continue
            code = process.poll()
            if code is None and monotonic() >= limit:
                os.killpg(process.pid, signal.SIGKILL)  # its own group: a sanitizer's child too
                process.wait()
                found[n] = "timed out", monotonic()
            elif code is not None:
                found[n] = "failed" if code else "passed", monotonic()
        sleep(0.02)
    return [found[n] for n in range(len(processes))]
