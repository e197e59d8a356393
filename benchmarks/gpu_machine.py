"""What the GPU check knows of the machine: the GPU, and CUDA's tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import torch


def facts() -> dict[str, Any]:
    """Name, driver, clocks and memory as nvidia-smi tells, and what torch knows; empty without a GPU."""
    if not torch.cuda.is_available():
        return {"gpu": None, "driver": None}
    p = torch.cuda.get_device_properties(0)
    facts = {"gpu": p.name, "driver": None, "sm": p.multi_processor_count, "memory_bytes": p.total_memory}
    facts |= {"capability": f"{p.major}.{p.minor}", "l2_bytes": p.L2_cache_size}
    if shutil.which("nvidia-smi"):
        fields = ("driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit")
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().split(", ")
        if len(said) == len(fields):
            facts |= dict(zip(("driver", *fields[1:]), said, strict=True))
    return facts


def find_tool(name: str) -> str | None:
    """A program on PATH, or where CUDA is."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    paths = [shutil.which(name), *(f"{h}/bin/{name}" for h in homes if h)]
    return next((p for p in paths if p and os.access(p, os.X_OK)), None)
