"""The CUDA selection, compiled for the host with threads for a block's threads, against plain indexing."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from test_select import DTYPES, KINDS, LAYOUTS, compiled, matrix, pick, plain, poisoned

from ligo_fast import select as module
from ligo_fast.select import Item, Table

CSRC = Path(__file__).parent.parent / "csrc"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """select.cu as a library of the host."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("cuda")
    text = (CSRC / "cuda/select.cu").read_text()
    launch = "select_tiles<<<unsigned(count), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(items, tiles);"
    assert launch in text, "the launch is written differently now"
    text = text.replace(launch, "launch(select_tiles, count, THREADS, items, tiles);")
    for header in ("cuda_bf16.h", "cuda_fp16.h", "cuda_runtime.h"):
        text = text.replace(f"#include <{header}>", '#include "cuda_on_host.h"')
    text = text.replace('#include "select.h"', '#include "cuda/select.h"')
    text += """
    extern "C" int run(const ligo::selection::Item* items, const ligo::selection::Tile* tiles, long count) {
        return ligo::cuda::select(items, tiles, count, 0, nullptr);
    }"""
    (folder / "select.cpp").write_text(text)
    command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"]
    command += [f"-I{CSRC}", f"-I{Path(__file__).parent}", "select.cpp", "-o", "select.so"]
    subprocess.run(command, check=True, cwd=folder)
    return ctypes.CDLL(str(folder / "select.so"))


@compiled
@pytest.mark.parametrize("dtypes", itertools.product(DTYPES, DTYPES), ids=str)
def test_the_kernel_computes_what_torch_does(
    dtypes: tuple[torch.dtype, torch.dtype], kernel: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layout and every kind of side, in one table; widths with 16-byte accesses and without."""
    monkeypatch.setitem(module.TILE_VALUES, "cpu", module.TILE_VALUES["cuda"])
    items, want = [], []
    for n, (given, written) in enumerate(itertools.product(LAYOUTS, LAYOUTS)):
        for width in (33, 96, 128):
            kinds = KINDS[n % len(KINDS)], KINDS[(n // 3 + width) % len(KINDS)]
            rows, columns = pick(kinds[0], 19, 70), pick(kinds[1], 64, width)
            source = matrix((19, 64), dtypes[0], given)
            out = poisoned((rows.size, columns.size), dtypes[1], written)
            items.append(Item(source, out, rows, columns, 1.0 + 0.3 * (n % 2)))
            want.append(plain(source, rows, columns, items[-1].scale, dtypes[1]))
    table = Table(items)
    addresses = [ctypes.c_void_p(t.data_ptr()) for t in (table._words, table._tiles)]
    assert kernel.run(*addresses, ctypes.c_long(len(table._tiles))) == 0
    for item, w in zip(items, want, strict=True):
        assert torch.equal(item.out, w)
