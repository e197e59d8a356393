"""The compiled selection, sums and noise on CUDA devices (csrc/cuda): loading it, and why it is off.

It is optional: without it torch does the same, tensor by tensor. LIGO_FAST_NO_EXT=1 switches it off.
"""

from __future__ import annotations

import functools
import os
import warnings
from importlib import import_module
from typing import Any

import torch

from .cpu import stale, warn_of

TABLES = {"ITEM_WORDS": 24, "SUM_WORDS": 21}  # see cpu.py


def _load() -> tuple[Any, str]:
    """The module, or None and the reason."""
    if os.environ.get("LIGO_FAST_NO_EXT") == "1":
        return None, "switched off by LIGO_FAST_NO_EXT=1"
    try:
        module = import_module("ligo_fast._cuda")
    except ImportError as error:
        return None, f"not built ({error})"
    if why := stale(module, TABLES):
        return None, warn_of("ligo_fast._cuda", why)
    return module, ""


extension, _reason = _load()


def runs_on(architectures: str, major: int, minor: int) -> bool:
    """Whether a binary for "80 90a 100+PTX" has code for a device: the same major version, or older PTX."""
    for name in architectures.split():
        number, _, ptx = name.partition("+")
        own = divmod(int(number.rstrip("a")), 10)
        if ptx and own <= (major, minor):
            return True
        if own[0] == major and (own[1] == minor if number.endswith("a") else own[1] <= minor):
            return True
    return False


@functools.cache
def why_not() -> str:
    """Why tensors on CUDA devices are not for this module; empty when they are.

    Where it was built, and torch has a device, a driver or a device that does not fit gives one warning.
    """
    if extension is None:
        return _reason
    error, message, count = extension.device_count()
    why = f"{message} (CUDA error {error})" if error else "" if count else "no CUDA device"
    if not why and torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(number)
            if not runs_on(extension.architectures, major, minor):
                why = f"device {number} is sm_{major}{minor}, the binary is for {extension.architectures}"
    if why and torch.cuda.is_available():
        warnings.warn(f"ligo_fast: torch instead of the compiled selection: {why}", stacklevel=2)
    return why


def _on(device: torch.device) -> tuple[int, int]:
    """The device's number and torch's current stream of it."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return index, torch.cuda.current_stream(index).cuda_stream


def select(items: int, tiles: int, count: int, device: torch.device) -> None:
    """Launch a table of selections on torch's current stream of a device, without waiting.

    Raises:
        RuntimeError: with CUDA's message, when it does not launch.
    """
    extension.select(items, tiles, count, *_on(device))


def sum_(table: int, tiles: int, count: int, device: torch.device) -> None:
    """Launch a table of sums, as `select`."""
    extension.sum(table, tiles, count, *_on(device))


def normals(out: int, count: int, seed: int, stream: int, device: torch.device) -> None:
    """Launch the writing of `count` normal numbers, as `select`."""
    extension.normals(out, count, seed, stream, *_on(device))
