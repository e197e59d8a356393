"""The CUDA kernels, compiled for the host with threads for a block's threads, against torch and the CPU."""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from matrices import DTYPES, LAYOUTS, compiled, matrix, poisoned
from test_select import KINDS, pick, plain
from test_sums import random_sums

from ligo_fast.compute import sums
from ligo_fast.native import noise
from ligo_fast.native import select as module
from ligo_fast.native.select import Item, Table

CSRC = Path(__file__).parent.parent / "csrc"


LAUNCH = re.compile(r"(\w+)<<<unsigned\((\w+)\), THREADS, 0, static_cast<cudaStream_t>\(stream\)>>>\(")
CALLS = """
#include "cuda/select.h"
#include "cuda/sum.h"
#include "cuda/fill.h"
#include "cuda_on_host.h"
extern "C" {
int run(const ligo::selection::Item* items, const ligo::selection::Tile* tiles, long count) {
    return ligo::cuda::select(items, tiles, count, 0, nullptr);
}
int run_sum(const ligo::sums::Sum* sums, const ligo::selection::Tile* tiles, long count) {
    return ligo::cuda::sum(sums, tiles, count, 0, nullptr);
}
int run_normals(float* out, long count, unsigned long seed, unsigned long stream) {
    return ligo::cuda::normals(out, count, seed, stream, 0, nullptr);
}
// Launches for device 1 where `before` is current: the device it is on, and the one that is current then.
int run_elsewhere(int number, int before, float* out, int* after) {
    cuCtxSetCurrent(reinterpret_cast<void*>(before + std::intptr_t{1}));
    const auto* items = reinterpret_cast<const ligo::selection::Item*>(out);
    const ligo::selection::Tile tile{};
    if (number == 0) ligo::cuda::select(items, &tile, 1, 1, nullptr);
    if (number == 1) ligo::cuda::sum(reinterpret_cast<const ligo::sums::Sum*>(out), &tile, 1, 1, nullptr);
    if (number == 2) ligo::cuda::normals(out, 1, 0, 0, 1, nullptr);
    *after = current_device();
    return launched_on;
}
}
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The .cu files as a library of the host."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "calls.cpp").write_text(CALLS)
    names = ["calls.cpp"]
    for path in sorted((CSRC / "cuda").glob("*.cu")):
        text, launches = LAUNCH.subn(r"launch(\1, \2, THREADS, ", path.read_text())
        assert launches == 1, f"the launch in {path.name} is written differently now"
        text = text.replace("#include <cuda_runtime.h>", '#include "cuda_on_host.h"')
        for header in ("current.h", "fill.h", "numbers.h", "select.h", "sum.h"):
            text = text.replace(f'#include "{header}"', f'#include "cuda/{header}"')
        text = text.replace('#include "../philox.h"', '#include "philox.h"')
        names.append(f"{path.stem}.cpp")
        (folder / names[-1]).write_text(text)
    for header in ("cuda_bf16.h", "cuda_fp16.h", "cuda_runtime.h"):
        (folder / header).write_text('#include "cuda_on_host.h"')
    command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"]
    command += ["-ffp-contract=off", f"-I{folder}", f"-I{CSRC}", f"-I{Path(__file__).parent}"]
    subprocess.run([*command, *names, "-o", "kernels.so"], check=True, cwd=folder)
    return ctypes.CDLL(str(folder / "kernels.so"))


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


@compiled
def test_the_sums_are_those_of_the_cpu_to_the_bit(
    kernel: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = random_sums(40)
    sums.Table(items)()
    want = [item.out.clone() for item in items]
    for item in items:
        item.out.fill_(torch.nan)
    monkeypatch.setattr(sums, "tile_of", lambda device, width: sums.CUDA_TILE)
    table = sums.Table(items)
    addresses = [ctypes.c_void_p(t.data_ptr()) for t in (table._words, table._tiles)]
    assert kernel.run_sum(*addresses, ctypes.c_long(len(table._tiles))) == 0
    for item, w in zip(items, want, strict=True):
        assert torch.equal(item.out, w)


@compiled
@pytest.mark.parametrize("count", [0, 1, 5, 1023, 4097])
def test_the_normals_are_those_of_the_cpu_to_the_bit(kernel: ctypes.CDLL, count: int) -> None:
    out = torch.full((count + 1,), 7.0)
    seed, stream = (1 << 63) + 5, (1 << 40) + 3
    arguments = ctypes.c_long(count), ctypes.c_ulong(seed), ctypes.c_ulong(stream)
    assert kernel.run_normals(ctypes.c_void_p(out.data_ptr()), *arguments) == 0
    assert torch.equal(out[:count], noise.normal((count,), seed, stream, torch.device("cpu")))
    assert out[count] == 7.0


@pytest.mark.parametrize("launch", range(3), ids=["select", "sum", "normals"])
@pytest.mark.parametrize("before", [-1, 0, 1])
def test_what_was_current_is_so_after_a_launch(before: int, launch: int, kernel: ctypes.CDLL) -> None:
    """In the driver, which has one context for a thread and all runtimes in it: -1 is none."""
    after, nothing = ctypes.c_int(7), torch.zeros(64)
    assert kernel.run_elsewhere(launch, before, ctypes.c_void_p(nothing.data_ptr()), ctypes.byref(after)) == 1
    assert after.value == before
