"""The header of a safetensors file: where each tensor lies, checked before anything is read.

The format (safetensors' documentation): 8 bytes with the header's length, little-endian; JSON of name ->
{dtype, shape, data_offsets}; the tensors, without holes, to the end of the file. The library's own reader
maps whole files and does not say where tensors lie, which is what streaming needs.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import GrowthError

MAX_HEADER = 100_000_000  # bytes, as in the library
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: `start` and `stop` are bytes from the file's beginning."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def read_json(text: bytes, where: str) -> Any:
    """JSON in which no object has a key twice.

    Raises:
        GrowthError: for what is no such JSON, naming `where`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for key, value in pairs:
            if key in known:
                raise GrowthError(f"{where}: the name {key!r} stands there twice")
            known[key] = value
        return known

    try:
        return json.loads(text.decode(), object_pairs_hook=unique)
    except GrowthError:
        raise
    except (ValueError, RecursionError) as error:
        raise GrowthError(f"{where}: not JSON: {error}") from error


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    Raises:
        GrowthError: for a file that is truncated or no safetensors file, naming it and the field.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        if len(first) < 8:
            raise GrowthError(f"{file}: {size} bytes are no safetensors file")
        length = struct.unpack("<Q", first)[0]
        if length > min(MAX_HEADER, size - 8):
            raise GrowthError(f"{file}: its header claims {length} bytes, the file has {size}")
        header = read_json(stream.read(length), f"{file}: header")
    if not isinstance(header, dict):
        raise GrowthError(f"{file}: header: a {type(header).__name__}, not an object")
    header.pop("__metadata__", None)
    entries = [_entry(file, name, field, 8 + length, size) for name, field in header.items()]
    entries.sort(key=lambda e: (e.start, e.stop))
    at = 8 + length
    for e in entries:
        if e.start != at:
            how = "overlaps what comes before it" if e.start < at else "leaves a hole before it"
            raise GrowthError(
                f"{file}: tensor {e.name}: data_offsets [{e.start - 8 - length}, …] {how} "
                f"(up to {at - 8 - length})"
            )
        at = e.stop
    if at != size:
        raise GrowthError(f"{file}: its tensors end at byte {at}, the file at {size}")
    return {e.name: e for e in entries}


def _entry(file: Path, name: str, field: Any, base: int, size: int) -> Entry:
    where = f"{file}: tensor {name}"
    if not isinstance(field, dict) or not {"dtype", "shape", "data_offsets"} <= set(field):
        raise GrowthError(f"{where}: dtype, shape and data_offsets are needed")
    if not isinstance(field["dtype"], str) or field["dtype"] not in DTYPES:
        raise GrowthError(f"{where}: dtype {field['dtype']!r} is none of {', '.join(DTYPES)}")
    shape = _naturals(field["shape"], f"{where}: shape")
    offsets = _naturals(field["data_offsets"], f"{where}: data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise GrowthError(f"{where}: data_offsets {offsets} are no start and end")
    if base + offsets[1] > size:
        raise GrowthError(f"{where}: data_offsets {offsets} reach past the file's {size - base} bytes")
    dtype = DTYPES[field["dtype"]]
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise GrowthError(
            f"{where}: shape {shape} of {field['dtype']} takes {math.prod(shape) * dtype.itemsize} bytes, "
            f"data_offsets {offsets} have {offsets[1] - offsets[0]}"
        )
    return Entry(name, file, dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _naturals(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or any(type(n) is not int or n < 0 for n in value):
        raise GrowthError(f"{where}: {value!r} is no list of natural numbers")
    return value


def make_header(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """The first bytes of a file with these tensors in this order; data starts at a multiple of 64 bytes."""
    fields: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text
