"""NaN and infinity in a checkpoint's files: counted as they are hashed, refused before a folder is there."""

from __future__ import annotations

import json
import math
import struct

import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ligo_fast as lf
from ligo_fast import hashing
from ligo_fast.checkpoint import grow_checkpoint
from ligo_fast.native import finite

NOT = [math.nan, -math.nan, math.inf, -math.inf]
LARGEST = {"F16": 65504.0, "BF16": 3.3895313892515355e38, "F32": 3.4028234663852886e38, "F64": 1.79e308}
TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@pytest.fixture(params=["compiled", "plain"])
def count(request, monkeypatch):
    """With and without the extension."""
    finite.counting.cache_clear()
    if request.param == "plain":
        monkeypatch.setenv("LIGO_FAST_NO_EXT", "1")
    elif finite.counting() is finite.plain:
        pytest.skip("the extension is not built")
    yield finite.counting()
    finite.counting.cache_clear()


def write(path, tensors, spaces=0):
    """A safetensors file whose header is so many spaces longer than it must be."""
    header, parts, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, (kind, t) in tensors.items():
        raw = t.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": kind, "shape": list(t.shape), "data_offsets": [at, at + len(raw)]}
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header).encode() + b" " * spaces
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_not_finite(kind, count):
    """At every place of every lane, and nothing that is only large, small or zero."""
    t = torch.zeros(5000, dtype=TYPES[kind])
    t[::3], t[1::3] = LARGEST[kind], -LARGEST[kind]
    t[7] = -0.0
    t[11] = torch.finfo(t.dtype).tiny / 4
    for size in (0, 1, 31, 32, 33, 4097, 5000):
        for bad in range(min(size, 130) + 1):
            values = t[:size].clone()
            for n in range(bad):
                values[size - 1 - n] = NOT[n % 4]
            raw = b"xyz" + values.view(torch.uint8).numpy().tobytes()
            assert count(raw, 3, size, *finite.KINDS[kind]) == bad


def test_as_many_as_there_are(count):
    """More than the counter of a lane holds."""
    t = torch.full((300_001,), math.nan, dtype=torch.bfloat16)
    raw = memoryview(bytearray(t.view(torch.uint8).numpy().tobytes()))
    assert count(raw, 0, len(t), *finite.KINDS["BF16"]) == len(t)


@pytest.mark.parametrize("first, n", [(0, 6), (-1, 1), (2, 5), (11, 1), (0, 1 << 62)])
def test_beyond_the_buffer(first, n, count):
    with pytest.raises(ValueError, match=r"."):
        assert count(bytearray(10), first, n, 2, 0x7F80) < 0


@pytest.mark.parametrize("block", [1, 3, 8, 50, 64, 1 << 20])
@pytest.mark.parametrize("spaces", range(8))
def test_blocks_that_cut_values(block, spaces, tmp_path, monkeypatch, count):
    monkeypatch.setattr(hashing, "BLOCK", block)
    rng, tensors, want = np.random.default_rng(spaces), {}, {}
    for n, kind in enumerate([*TYPES, *TYPES]):
        t = torch.from_numpy(rng.standard_normal((n, 5))).to(TYPES[kind])
        where = torch.from_numpy(rng.random(t.shape) < 0.3)
        t[where] = NOT[n % 4]
        tensors[f"t.{n}"] = (kind, t)
        if where.any():
            want[f"t.{n}"] = int(where.sum())
        tensors[f"odd.{n}"] = ("U8", torch.full((n,), 255, dtype=torch.uint8))
        tensors[f"whole.{n}"] = ("I32", torch.full((2,), -1, dtype=torch.int32))
    write(tmp_path / "model.safetensors", tensors, spaces)
    assert hashing.read_file(tmp_path / "model.safetensors").not_finite == want and len(want) > 4


def headed(text):
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\1",
        struct.pack("<Q", 1 << 60) + b"{}",
        headed(b"[]"),
        headed(b'{"a":3}'),
        headed(b"\xff\xff"),
        headed(b"[" * 100_000),
        headed(b'{"a":{"dtype":"F32","data_offsets":[9,1]}}'),
        headed(b'{"a":{"dtype":"F32","data_offsets":[0,"1"]}}'),
        headed(b'{"a":{"dtype":"F32","data_offsets":[0,99]}}') + b"\0" * 9,
        headed(b'{"a":{"dtype":"F32","data_offsets":[0,40]},"b":{"dtype":"F32","data_offsets":[4,8]}}')
        + b"\0" * 80,
    ],
    ids=["", "1", "huge", "list", "number", "bytes", "deep", "backwards", "text", "short", "overlapping"],
)
def test_a_file_that_is_no_such_thing(content, tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "BLOCK", 16)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert hashing.read_file(tmp_path / "model.safetensors").not_finite == {}


GROWTHS = [
    {"depth": 4, "method": "stack"},  # which only moves tensors
    {"layers": "0-1,0-1"},
    {"width": 32, "method": "net2net"},
    {"width": 32, "depth": 3, "method": "ligo"},
    {"width": 32, "method": "net2net", "noise": 0.5},
    {"width": 32, "dtype": "bfloat16"},
]


@pytest.mark.parametrize("how", GROWTHS, ids=str)
@pytest.mark.parametrize("there", [False, True])
def test_a_source_that_is_not_finite(how, there, tmp_path, count):
    small, out = tmp_path / "small", tmp_path / "out"
    models.build("llama-lm").save_pretrained(small)
    if there:
        grow_checkpoint(small, out, depth=3)
    before = sorted(p.read_bytes() for p in out.iterdir()) if there else None
    tensors, name = load_file(small / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, :2] = torch.tensor([math.nan, math.inf])
    save_file(tensors, small / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        lf.GrowthError, match=rf"small/model\.safetensors: tensor {name}: 2 of 192 values are NaN or infinite"
    ):
        grow_checkpoint(small, out, overwrite=there, **how)
    assert sorted(p.name for p in tmp_path.iterdir()) == (["out", "small"] if there else ["small"])
    assert not there or sorted(p.read_bytes() for p in out.iterdir()) == before


def test_what_is_no_parameter_may_be_infinite(tmp_path):
    """A mask, say, that old files have beside their weights."""
    models.build("gpt2-lm").save_pretrained(tmp_path / "small")
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-math.inf)
    save_file(tensors, tmp_path / "small" / "model.safetensors", {"format": "pt"})
    grow_checkpoint(tmp_path / "small", tmp_path / "out", width=16)
    assert (tmp_path / "out" / "model.safetensors").exists()
