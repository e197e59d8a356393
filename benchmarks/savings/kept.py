"""Work that several runs share is done once, by the first process that asks."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.measure import write_whole
from benchmarks.savings.tasks import Task


def name_of(task: Task, seed: int, *what: str) -> str:
    """For files; it changes with the task."""
    digest = sha256(json.dumps(asdict(task), sort_keys=True).encode()).hexdigest()[:12]
    return "-".join([task.name, digest, str(seed), *what])


def once(folder: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returned when it was called under this name, now or earlier; tensors it leaves in files."""
    facts = folder / f"{name}.json"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not facts.exists():
            write_whole(facts, json.dumps(make()))
    found: dict[str, Any] = json.loads(facts.read_text())
    return found
