"""What is installed and which backends work, in words."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import __version__
from .compute import split
from .compute.backends import why_not_triton
from .errors import GrowthError
from .native import cpu, cuda


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _triton() -> str:
    """Why the Triton kernels are off; empty when they are not."""
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return why_not_triton(torch.device(device))
    except GrowthError as why:
        return str(why)


def backends() -> dict[str, str]:
    """Every backend, and why it is off; empty for one that works."""
    return {
        "torch": "",
        "compiled, CPU": cpu.why_not(),
        "matrix units, CPU": split.why_not(),
        "compiled, CUDA": cuda.why_not(),
        "triton": _triton(),
    }


def facts() -> dict[str, Any]:
    """Versions, backends, the instructions in use on the CPU and the architectures in the CUDA binary."""
    driver, runtime = cuda.extension.versions() if cuda.extension is not None else (0, 0)
    return {
        "versions": {
            "ligo_fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
        },
        "cuda": {
            "devices": torch.cuda.device_count(),
            "architectures": cuda.extension.architectures if cuda.extension is not None else "",
            "runtime": runtime,
            "driver": driver,
        },
        "cpu": cpu.state,
        "backends": backends(),
    }


def report() -> str:
    """The same in words, one a line."""
    known = facts()
    lines, gpu = known["versions"], known["cuda"]
    lines["torch"] += f", {gpu['devices']} CUDA devices"
    if gpu["architectures"]:
        lines["CUDA architectures"] = gpu["architectures"]
        lines["CUDA runtime, driver"] = f"{gpu['runtime']}, {gpu['driver'] or 'none'}"
    lines |= {f"backend {name}": f"off: {why}" if why else "on" for name, why in known["backends"].items()}
    if cpu.extension is not None:
        lines["backend compiled, CPU"] = f"on: {cpu.state}"
    return "\n".join(f"{name:24} {value}" for name, value in lines.items())
