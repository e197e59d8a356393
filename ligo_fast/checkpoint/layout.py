"""Where the grown tensors go: shards of a given size, their headers and the index."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import GrowthError
from .folder import INDEX, WEIGHTS
from .header import Entry, make_header

Tensors = dict[str, tuple[torch.dtype, tuple[int, ...]]]
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Shard:
    """A weight file to be written: its header, its size in bytes, its tensors (in no folder yet)."""

    name: str
    header: bytes
    size: int
    entries: dict[str, Entry]


def read_size(size: int | str) -> int:
    """`"5GB"` (10^9), `"5GiB"` (2^30) or a number of bytes, in bytes.

    Raises:
        GrowthError: for what is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(size).strip().upper())
    if found is None or found[2] not in UNITS or not (n := int(float(found[1]) * UNITS[found[2]])):
        raise GrowthError(f"shard size {size!r}: write it as 500MB, 5GB or 5GiB")
    return n


def make_shards(tensors: Tensors, shard_size: int) -> list[Shard]:
    """Tensors in their order, a new file where the next one would not fit."""
    groups: list[Tensors] = [{}]
    used = 0
    for name, (dtype, shape) in tensors.items():
        n = math.prod(shape) * dtype.itemsize
        if used + n > shard_size and groups[-1]:
            groups.append({})
            used = 0
        groups[-1][name] = (dtype, shape)
        used += n
    shards = []
    for number, group in enumerate(groups, 1):
        many = f"model-{number:05}-of-{len(groups):05}.safetensors"
        name = many if len(groups) > 1 else WEIGHTS
        header = make_header(group, {"format": "pt"})
        entries, at = {}, len(header)
        for tensor, (dtype, shape) in group.items():
            end = at + math.prod(shape) * dtype.itemsize
            entries[tensor] = Entry(tensor, Path(name), dtype, shape, at, end)
            at = end
        shards.append(Shard(name, header, at, entries))
    return shards


def index_file(shards: list[Shard]) -> tuple[str, bytes] | None:
    """The name and content of the index; None for a single shard."""
    if len(shards) == 1:
        return None
    entries = [e for s in shards for e in s.entries.values()]
    metadata = {
        "total_parameters": sum(math.prod(e.shape) for e in entries),
        "total_size": sum(e.nbytes for e in entries),
    }
    content = {"metadata": metadata, "weight_map": {e.name: str(e.file) for e in entries}}
    return INDEX, (json.dumps(content, indent=2) + "\n").encode()
