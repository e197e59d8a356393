"""What is installed and which backends work, in words."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from . import __version__, cpu, cuda, split
from .backends import why_not_triton
from .errors import GrowthError


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


def report() -> str:
    """Versions, backends and the architectures in the CUDA binary, one a line."""
    lines = {
        "ligo_fast": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.cuda.device_count()} CUDA devices",
        "triton": _version("triton"),
    }
    if cuda.extension is not None:
        driver, runtime = cuda.extension.versions()
        lines["CUDA architectures"] = cuda.extension.architectures
        lines["CUDA runtime, driver"] = f"{runtime}, {driver or 'none'}"
    lines |= {f"backend {name}": f"off: {why}" if why else "on" for name, why in backends().items()}
    if cpu.extension is not None:
        lines["backend compiled, CPU"] = f"on: {cpu.state}"
    return "\n".join(f"{name:24} {value}" for name, value in lines.items())
