"""What a checkpoint is and could become, and what a planned growth will cost."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ..errors import GrowthError
from ..growing import DEFAULT
from ..models.target import target_config
from ..operator import GrowthOperator
from .folder import open_checkpoint
from .planned import Plan
from .skeleton import Source, large_skeleton, read_source

PROBE_BYTES = 64 << 20


def describe(folder: str | Path) -> dict[str, Any]:
    """A checkpoint's facts: sizes by axis, dtype, bytes, and the widths it could grow to.

    It is read as a source to be grown is, and made ready to be grown to its own sizes.

    Raises:
        GrowthError: for a folder that could not be grown, naming file and field.
    """
    source = read_source(open_checkpoint(folder))
    checkpoint, skeleton = source.checkpoint, source.skeleton
    sizes = source.architecture.read_sizes(skeleton)
    GrowthOperator(skeleton, large_skeleton(source, skeleton.config)[0], DEFAULT)  # says what is wrong
    widths = _widths(source, sizes["embed"])
    return {
        "folder": str(checkpoint.folder),
        "class": (checkpoint.config.get("architectures") or ["unknown"])[0],
        "architecture": source.architecture.name,
        "axes": sizes,
        "dtype": ", ".join(sorted({str(e.dtype).removeprefix("torch.") for e in source.weights.values()})),
        "parameters": sum(p.numel() for p in skeleton.parameters()),
        "bytes": checkpoint.nbytes,
        "shards": len(checkpoint.shards),
        "tensors": len(source.weights),
        "left_out": sorted(set(checkpoint.entries) - set(source.weights)),
        "tied_head": bool(source.tied),
        "widths": widths,
        "width_step": min(
            (b - a for a, b in zip([sizes["embed"], *widths], widths, strict=False)), default=None
        ),
    }


def _widths(source: Source, old: int) -> list[int]:
    """Widths up to twice the old one at which heads and ffn come out whole."""
    found = []
    for width in range(old + 1, 2 * old + 1):
        try:
            target_config(source.architecture, source.skeleton, width, None, {})
        except GrowthError:
            continue
        found.append(width)
    return found


def plan_facts(plan: Plan, place: Path) -> dict[str, Any]:
    """What a growth will write and need, and about how long it takes on this machine.

    The disk's rate is that of a nameless file of 64 MB written beside `place`, the processor's that of one
    product; the estimate is their sum and knows nothing of other work on the machine.
    """
    axes = {n: [a.small, a.large] for n, a in plan.op.growth.axes.items() if not a.factors}
    small = plan.source.weights
    large = {n: e for s in plan.shards for n, e in s.entries.items()}
    peak = max(
        sum(large[n].nbytes for n in u.large) + sum(small[n].nbytes for n in u.small) for u in plan.units
    )
    flops = plan.op.flops()
    write, compute = plan.nbytes / _disk_rate(place.parent), flops / _product_rate() if flops else 0.0
    return {
        "method": plan.op.growth.method,
        "axes": axes,
        "parameters": list(plan.parameters),
        "bytes": plan.nbytes,
        "shards": {s.name: s.size for s in plan.shards},
        "tensors": len(large),
        "copied": [p.name for p in plan.companions],
        "largest_unit_bytes": peak,
        "flops": flops,
        "seconds": round(write + compute, 2),
        "notes": plan.notes,
    }


def _disk_rate(folder: Path) -> float:
    """Bytes a second that reach the disk."""
    block = bytes(PROBE_BYTES)
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY)
    except OSError as error:
        raise GrowthError(f"{folder}: {error.strerror}") from error
    try:
        start = perf_counter()
        os.write(descriptor, block)
        os.fdatasync(descriptor)
        return PROBE_BYTES / (perf_counter() - start)
    except OSError as error:
        raise GrowthError(f"{folder}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _product_rate(size: int = 1024) -> float:
    """FLOPs a second of a product of square float32 matrices."""
    a, b = (torch.ones(size, size, dtype=torch.float32) for _ in range(2))
    torch.mm(a, b)
    start = perf_counter()
    torch.mm(a, b)
    return 2.0 * size**3 / (perf_counter() - start)
