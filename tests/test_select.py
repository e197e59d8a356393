"""Selection, compiled: every cast, stride and alignment against plain indexing, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import DTYPES, LAYOUTS, check_threads_and_instructions, compiled, matrix, poisoned
from torch import Tensor

from ligo_fast import reference
from ligo_fast.native import cpu, cuda
from ligo_fast.native.select import Item, Table, Take, _runs, select, take, why_not


def plain(source: Tensor, rows: Take, columns: Take, scale: float, dtype: torch.dtype) -> Tensor:
    """The same in torch, with the roundings of ligo_fast.compute.backend_torch."""

    def index(side: Take) -> Tensor:
        return torch.arange(side.start, side.start + side.size) if side.index is None else side.index.long()

    def scaled(x: Tensor, side: Take, dim: int) -> Tensor:
        return x if side.scale is None else x * side.scale.unsqueeze(1 - dim)

    i, j = index(rows), index(columns)
    padded = torch.nn.functional.pad(source.float(), (0, 1, 0, 1))  # index -1 is a zero
    x = scaled(scaled(padded[i][:, j], rows, 0), columns, 1) * scale
    return x.to(dtype)


def pick(kind: str, old: int, new: int) -> Take:
    """A side of each kind."""
    scale = torch.randn(new) if "scaled" in kind else None
    if "range" in kind:
        n = min(old, new)
        start = (old - n) // 2
        return take(range(start, start + n), old, None if scale is None else scale[:n])
    index = torch.randint(-1, old, (new,))
    if "prefix" in kind:
        n = min(old, new)
        index[:n] = torch.arange(n)
    if "tile" in kind:
        index = torch.arange(new) % old
        index[new - new // 4 :] = -1
    if scale is not None:
        scale[::5] = 0.0
    return take(index.int() if "32" in kind else index, old, scale)


KINDS = ["range", "range scaled", "random 32", "prefix", "prefix scaled", "tile", "tile scaled"]


@compiled
@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.tuples(*[st.sampled_from([1, 2, 3, 8, 17, 64, 65, 97, 200])] * 4),
    st.tuples(*[st.sampled_from(DTYPES)] * 2),
    st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
    st.tuples(*[st.sampled_from(KINDS)] * 2),
    st.sampled_from([1.0, 0.3]),
    st.booleans(),
)
def test_every_cast_stride_and_index(
    sizes: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    layouts: tuple[str, ...],
    kinds: tuple[str, ...],
    scale: float,
    stream: bool,
) -> None:
    o1, i1, o2, i2 = sizes
    source = matrix((o1, i1), dtypes[0], layouts[0])
    rows, columns = pick(kinds[0], o1, o2), pick(kinds[1], i1, i2)
    out = poisoned((rows.size, columns.size), dtypes[1], layouts[1])
    table = Table([Item(source, out, rows, columns, scale)])
    table._stream = stream
    table()
    want = plain(source, rows, columns, scale, dtypes[1])
    assert torch.equal(out, want)
    if dtypes == (torch.float32, torch.float32):  # the oracle; each scale rounds once
        dense = [torch.zeros(side.size, side.old) for side in (rows, columns)]
        for m, side in zip(dense, (rows, columns), strict=True):
            index = torch.arange(side.size) + side.start if side.index is None else side.index.long()
            given_ = index >= 0
            by = torch.ones(side.size) if side.scale is None else side.scale
            m[given_, index[given_]] = by[given_]
        exact = reference.grow(source[None], torch.tensor([[scale]]), *dense)[0]
        assert (out - exact).abs().max() <= 4 * torch.finfo(torch.float32).eps * exact.abs().max()


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_casts_of_every_kind_of_number(dtype: torch.dtype) -> None:
    """Infinities, NaN, subnormals, ties; all 65536 patterns of the two short types."""
    if dtype == torch.float32:
        bits = torch.arange(-(1 << 31), 1 << 31, 65521, dtype=torch.int64).to(torch.int32)
        ties = torch.arange(1 << 16, dtype=torch.int64) * 65536 + 32768
        values = torch.cat([bits, ties.to(torch.int32)]).view(torch.float32)
        values = torch.cat([values, torch.linspace(-7e-5, 7e-5, 20001)])
    else:
        values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[None]
    side = take(range(values.shape[1]), values.shape[1])
    for to in DTYPES:
        out = poisoned((1, values.shape[1]), to, "plain")
        select([Item(values, out, take(range(1), 1), side)])
        assert torch.equal(out.isnan(), values.to(to).isnan())
        assert torch.equal(out.nan_to_num(nan=7.0), values.to(to).nan_to_num(nan=7.0))


@compiled
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_items_any_number_of_threads_and_instructions(threads: int) -> None:
    items, want = [], []
    for n in range(40):
        o1, i1 = 3 + n, 5 + 7 * n
        source = matrix((o1, i1), DTYPES[n % 3], LAYOUTS[n % 5])
        rows, columns = pick(KINDS[n % 7], o1, 2 * o1), pick(KINDS[(n + 3) % 7], i1, 2 * i1)
        out = poisoned((rows.size, columns.size), DTYPES[(n // 3) % 3], LAYOUTS[(n // 2) % 5])
        items.append(Item(source, out, rows, columns, 1.0 + n % 2))
        want.append(plain(source, rows, columns, 1.0 + n % 2, out.dtype))
    check_threads_and_instructions(select, items, want, threads)


@compiled
def test_nothing_beside_the_out_is_written() -> None:
    wide = torch.full((9, 400), 7.0)
    source = torch.randn(9, 333)
    rows = torch.tensor([0, -1, 2, 3, -1, 5])  # rows of zeros are written by a loop of their own
    want = torch.where((rows >= 0)[:, None], source[rows], 0.0)
    for first in range(40):
        wide.fill_(7.0)
        table = Table([Item(source, wide[2:8, first : first + 333], take(rows, 9), take(range(333), 333))])
        table._stream = True
        table()
        assert torch.equal(wide[2:8, first : first + 333], want)
        assert int((wide == 7.0).sum()) == wide.numel() - 6 * 333


def test_scales_squared_and_zero() -> None:
    side = take(torch.tensor([0, 1, 1, 0]), 2, torch.tensor([2.0, -3.0, 0.0, 1.0]), square=True)
    assert side.index is not None and side.index.tolist() == [0, 1, -1, 0]
    assert side.scale is not None and side.scale.tolist() == [4.0, 9.0, 0.0, 1.0]
    pad = take(torch.tensor([0, 1, 0]), 2, torch.tensor([1.0, 1.0, 0.0]))
    assert pad.scale is None and pad.index is not None and pad.index.tolist() == [0, 1, -1]


@given(
    st.lists(st.integers(-1, 30), min_size=1, max_size=60) | st.integers(1, 40).map(lambda n: [*range(n)] * 2)
)
def test_runs_say_what_the_index_says(index: list[int]) -> None:
    runs = _runs(torch.tensor(index).numpy()).tolist()
    at = 0
    for first, count, source in runs:
        assert first == at and count > 0
        part = index[first : first + count]
        if source >= 0:
            assert part == [*range(source, source + count)]
        assert source != -1 or set(part) == {-1}
        at += count
    assert at == len(index)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.tensor([0, 3]), 3), "indices 0 .. 3 among 3"),
        ((torch.tensor([-2, 0]), 3), "indices -2"),
        ((torch.tensor([0.0]), 3), "float32"),
        ((torch.tensor([[0]]), 3), "index of"),
        ((range(2, 5), 4), "indices 2 .. 4"),
        ((range(0, 4, 2), 4), "step 2"),
        ((torch.tensor([0]), 1, torch.ones(2)), "scales"),
    ],
)
def test_a_bad_index_is_refused(args: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        take(*args)  # type: ignore[arg-type]


@compiled
def test_bad_items_are_refused_before_anything_is_written() -> None:
    side, fine = take(range(4), 4), torch.zeros(4, 4)
    memory = torch.zeros(12, 8)
    bad = {
        "where the indices say": (torch.zeros(4, 5), fine),
        "float64": (fine.double(), fine),
        "meta": (fine.to("meta"), fine),
        "source that overlaps": (memory[:4, :4], memory[2:6, :4]),
        "share memory": (fine, torch.zeros(1, 4).expand(4, 4)),
    }
    for message, (source, out) in bad.items():
        assert message in why_not([Item(source, out, side, side)]), message
        with pytest.raises(ValueError, match=message):
            select([Item(source, out, side, side)])
    released = torch.zeros(4, 4)
    released.untyped_storage().resize_(0)  # as FSDP leaves a parameter that is sharded
    assert "without memory" in why_not([Item(released, fine, side, side)])
    assert "without memory" in why_not([Item(torch.ones(4, 4), released, side, side)])
    raw = torch.frombuffer(bytearray(66), dtype=torch.uint8)
    odd = torch.frombuffer(memoryview(raw.numpy())[1:65], dtype=torch.float32).view(4, 4)
    assert "not a multiple of 4" in why_not([Item(odd, fine, side, side)])
    ones = torch.ones(4, 4)
    two = [Item(ones, memory[:4, :4], side, side), Item(ones, memory[3:7, :4], side, side)]
    assert "two outs" in why_not(two)
    columns = [Item(ones, memory[:4, :4], side, side), Item(ones, memory[:4, 4:], side, side)]
    assert why_not(columns) == ""  # as q and k lie in one weight
    columns = [Item(ones, memory[:4, :4], side, side), Item(ones, memory[:4, 3:7], side, side)]
    assert "two outs" in why_not(columns)
    assert not memory.any()


@compiled
def test_writes_count_as_versions() -> None:
    leaf = torch.zeros(4, 4)
    before = leaf._version
    select([Item(torch.ones(4, 4), leaf[:2], take(range(2), 4), take(range(4), 4))])
    assert leaf._version > before and bool((leaf[:2] == 1).all()) and not leaf[2:].any()


@compiled
def test_empty_sources_and_outs() -> None:
    out = torch.full((3, 20), torch.nan)
    select([Item(torch.zeros(3, 0), out, take(range(3), 3), take(torch.full((20,), -1), 0))])
    assert not out.any()
    select([Item(torch.zeros(3, 3), torch.zeros(0, 3), take(range(0), 3), take(range(3), 3))])
    select([])


@pytest.mark.parametrize(("module", "file"), [(cpu, "bind.cpp"), (cuda, "cuda/bind.cpp")])
def test_a_binary_says_all_that_is_asked_for(module: Any, file: str) -> None:
    """Else it would count as one of other sources, wherever it is built."""
    text = (Path(__file__).parents[1] / "csrc" / file).read_text()
    assert set(re.findall(r'm\.attr\("([A-Z_]+)"\)', text)) == module.TABLES.keys()


def test_a_binary_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has tables of another layout, or none, would read past them. That is no secret."""

    class Old:
        ITEM_WORDS = 23

    why = cpu.stale(Old(), cpu.TABLES)
    assert "ITEM_WORDS': 23" in why and "SUM_WORDS': None" in why
    assert cpu.extension is None or not cpu.stale(cpu.extension, cpu.TABLES)
    for module in (cpu, cuda):
        monkeypatch.setattr(module, "import_module", lambda name: Old())
        monkeypatch.delenv("LIGO_FAST_NO_EXT", raising=False)
        with pytest.warns(RuntimeWarning, match="is not used: built from other sources"):
            assert module._load()[0] is None
