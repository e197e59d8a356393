"""Block shapes, warps and stages, by GPU architecture and dtype."""

from __future__ import annotations

from typing import NamedTuple

import torch


class ProductConfig(NamedTuple):
    m: int
    n: int
    k: int
    warps: int
    stages: int


class BlendConfig(NamedTuple):
    rows: int  # of a tile, in every layer
    columns: int  # of float32; twice as many where all are of 16 bits
    layers: int  # outputs accumulated at once
    unroll: int  # layers of x loaded at once
    warps: int
    adjoint_rows: int  # of a program, at least
    adjoint_columns: int
    adjoint_warps: int


# By compute capability and precision, for products of more than THIN rows. Not measured on a GPU yet: chosen
# from what the compiler reports (`make kernel-report`: no spills, wgmma on sm_90, shared memory to spare).
PRODUCT = {
    (80, "ieee"): ProductConfig(64, 64, 16, 4, 3),
    (80, "tf32"): ProductConfig(128, 128, 32, 8, 3),
    (80, "bf16"): ProductConfig(128, 128, 32, 8, 3),
    (90, "ieee"): ProductConfig(64, 64, 16, 4, 3),
    (90, "tf32"): ProductConfig(128, 128, 32, 8, 3),
    (90, "bf16"): ProductConfig(128, 128, 64, 8, 3),
}
# Biases and gains are products of one row: bound by the bytes of C, so they are always "ieee".
THIN = 16
THIN_PRODUCT = ProductConfig(16, 64, 32, 4, 4)
# A product wider than this goes in bands of so many rows, each column by column. Of 128 x 128 tiles 132 run
# at once on an H100: in a band they read 16 rows of tiles and 9 columns, row by row a few rows and nearly all
# of B. That halves what wide products of growth to 7B read (counted in tests/test_tiles.py; not measured).
BAND = 2048
# Loads of single elements need many address registers: more threads share them.
UNALIGNED = ProductConfig(64, 64, 16, 8, 3)
UNALIGNED_WARPS = 4
BLEND = {80: BlendConfig(4, 128, 8, 4, 4, 32, 32, 2), 90: BlendConfig(4, 128, 8, 4, 4, 32, 32, 2)}
INTERPRETED = (
    ProductConfig(32, 32, 32, 4, 1),
    BlendConfig(4, 32, 4, 2, 4, 8, 16, 2),
)  # small, to cross many edges


def capability(device: torch.device) -> int:
    """The newest architecture in the tables that the device is not older than; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return max((c for c in BLEND if c <= 10 * major + minor), default=min(BLEND))


def product_config(precision: str, size: str, align: int, device: torch.device) -> ProductConfig:
    if device.type != "cuda":
        return INTERPRETED[0]
    if align == 1:
        return UNALIGNED
    return THIN_PRODUCT if size == "thin" else PRODUCT[capability(device), precision]


def blend_config(align: int, device: torch.device) -> BlendConfig:
    config = BLEND[capability(device)] if device.type == "cuda" else INTERPRETED[1]
    return config if align > 1 else config._replace(adjoint_warps=UNALIGNED_WARPS)
