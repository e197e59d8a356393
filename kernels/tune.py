"""Opt-in autotuning: LIGO_FAST_AUTOTUNE=1 times the candidates once a machine and remembers the best on disk.

The tables in `configs` are used otherwise, and where a kind has only one candidate. The files are in
$XDG_CACHE_HOME/ligo_fast/tune (default ~/.cache); deleting them is safe.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import triton

from .configs import ProductConfig, product_config
from .table import Matrix, Slots

if TYPE_CHECKING:
    from .expand import Kind

CANDIDATES = {
    "wide": [
        ProductConfig(128, 128, 32, 8, 3),
        ProductConfig(128, 128, 64, 8, 3),
        ProductConfig(128, 128, 64, 4, 3),
        ProductConfig(128, 256, 32, 8, 3),
        ProductConfig(64, 128, 64, 4, 4),
        ProductConfig(64, 64, 32, 4, 4),
    ],
    "thin": [
        ProductConfig(16, 64, 32, 4, 4),
        ProductConfig(16, 64, 64, 4, 3),
        ProductConfig(16, 32, 128, 4, 3),
    ],
}
SHAPES = {"wide": (1024, 512, 1024), "thin": (1, 512, 1024)}  # (M, N, K) that is timed
PRODUCTS = 32  # of that shape in a launch


def cache_file(key: str) -> Path:
    """Where the best configuration for a key is; a file for each, so that no process undoes another's."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "ligo_fast" / "tune" / f"{re.sub(r'[^a-zA-Z0-9.]+', '_', key)}.json"


def _read(path: Path) -> ProductConfig | None:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(known, list) and all(isinstance(n, int) for n in known)
    return ProductConfig(*known) if whole and len(known) == len(ProductConfig._fields) else None


def _keep_first(path: Path, config: ProductConfig) -> ProductConfig:
    """The first one that any process wrote there: replicas of a model must not round differently."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as f:
        json.dump(list(config), f)
    try:
        os.link(temporary, path)  # not `replace`: the whole file or none, and only where none is
    except OSError:  # there is one, or this file system has no links
        if _read(path) is None:
            os.replace(temporary, path)
            return config
    os.unlink(temporary)
    return _read(path) or config


def tuned(
    kind: Kind,
    precision: str,
    device: torch.device,
    measure: Callable[[Kind, str, ProductConfig, torch.device], float] | None = None,
) -> ProductConfig:
    """The block shapes of a product: the table's, or with LIGO_FAST_AUTOTUNE=1 the fastest candidate."""
    default = product_config(precision, kind.size, kind.align, device)
    if os.environ.get("LIGO_FAST_AUTOTUNE") != "1" or kind.align == 1:
        return default
    if measure is None:
        if device.type != "cuda":
            return default
        measure = seconds
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    path = cache_file(f"{name} triton {triton.__version__} {precision} {' '.join(map(str, kind))}")
    if (known := _read(path)) is not None:
        return known
    times = {c: measure(kind, precision, c, device) for c in {default, *CANDIDATES[kind.size]}}
    return _keep_first(path, min(times, key=lambda c: times[c]))


def seconds(kind: Kind, precision: str, config: ProductConfig, device: torch.device) -> float:
    """Median time of a launch; infinite for a configuration that the device has no room for."""
    with torch.cuda.device(device):  # Triton launches on the current one
        return statistics.median(_times(kind, precision, config, device) or [float("inf")])


def _times(kind: Kind, precision: str, config: ProductConfig, device: torch.device) -> list[float]:
    from .expand import Product, ProductLaunch

    m, n, k = SHAPES[kind.size]
    slots, tensors = Slots(device), []

    def matrix(rows: int, columns: int, dtype: torch.dtype, along_columns: bool) -> Matrix:
        shape = (rows, columns) if along_columns else (columns, rows)
        tensors.append(torch.randn(shape, device=device).to(dtype))
        slot = slots.add(tensors[-1])
        made = Matrix(slot, 0, shape, (shape[1], 1), dtype)
        return made if along_columns else made.t()

    products = [
        Product(
            matrix(m, n, kind.out, True),
            [(matrix(m, k, kind.a, kind.along_k), matrix(k, n, kind.b, kind.along_n))],
        )
        for _ in range(PRODUCTS)
    ]
    slots.upload()
    launch = ProductLaunch(products, slots, precision, config)
    times = []
    with contextlib.suppress(triton.runtime.errors.OutOfResources):
        for _ in range(3):
            launch(slots.pointers)
        for _ in range(10):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch(slots.pointers)
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
    return times
