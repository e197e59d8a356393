"""Small cases of everything in csrc/ for a device, for a sanitizer to watch: selection, sums, normal numbers.

Data are made and checked on the host. Selections must be what torch computes, bit for bit; sums at most twice
as far from float64 as float32 products; normal numbers the bits that plain torch gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ligo_fast.compute import sums
from ligo_fast.maps import Identity, Selection
from ligo_fast.native import noise
from ligo_fast.native.select import Item, Take, select, take

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("plain", "transposed", "unaligned", "inside")
WIDTHS = (33, 96, 128)  # accesses of 2 or 4 bytes, and of 16


def cases(device: torch.device) -> Iterator[tuple[str, Callable[[], str]]]:
    """Name, and what says what is wrong."""
    pairs = itertools.product(DTYPES, DTYPES)
    for n, ((given, written), layout) in enumerate(itertools.product(pairs, LAYOUTS)):
        types = f"{str(given)[6:]} to {str(written)[6:]}, {layout}"
        run = partial(_selection, given, written, layout, WIDTHS[n % 3], device)
        yield f"select, {types}, width {WIDTHS[n % 3]}", run
        yield f"sums, {types}", partial(_sums, given, written, layout, device)
    for count in (1, 1023, 4097):
        yield f"{count} normal numbers", partial(_normals, count, device)


def _laid_out(values: Tensor, layout: str, device: torch.device) -> Tensor:
    """The values on a device, in one of several layouts."""
    (rows, columns), kind = values.shape, {"dtype": values.dtype, "device": device}
    if layout == "transposed":
        empty = torch.empty(columns, rows, **kind).t()  # type: ignore[arg-type]
    elif layout == "unaligned":
        empty = torch.empty(rows * columns + 1, **kind)[1:].view(rows, columns)  # type: ignore[arg-type]
    elif layout == "inside":
        empty = torch.empty(rows, 2 * columns + 3, **kind)[:, columns : 2 * columns]  # type: ignore[arg-type]
    else:
        empty = torch.empty(rows, columns, **kind)  # type: ignore[arg-type]
    return empty.copy_(values)


def _side(old: int, new: int, seed: int) -> tuple[Tensor, Tensor]:
    """The old units, then random ones; scales, some of them zero."""
    rng = torch.Generator().manual_seed(seed)
    index = torch.cat([torch.arange(old), torch.randint(old, (new - old,), generator=rng)])
    scale = torch.randn(new, generator=rng)
    scale[::7] = 0.0
    return index, scale


def _selection(
    given: torch.dtype, written: torch.dtype, layout: str, width: int, device: torch.device
) -> str:
    rng = torch.Generator().manual_seed(1)
    source = torch.randn(19, 32, generator=rng).to(given)
    (i, row), (j, column) = _side(19, 70, 2), _side(32, width, 3)
    sides: list[Take] = [
        take(index, old, scale, device=str(device)) for index, old, scale in ((i, 19, row), (j, 32, column))
    ]
    out = _laid_out(torch.full((70, width), torch.nan, dtype=written), layout, device)
    select([Item(_laid_out(source, layout, device), out, *sides, 0.3)])
    x = (source.float()[i][:, j] * row[:, None] * column * 0.3).to(written)
    return "" if torch.equal(out.cpu(), x) else "not what torch computes"


def _sums(given: torch.dtype, written: torch.dtype, layout: str, device: torch.device) -> str:
    """Two layers summed under the adjoint of a selection of rows."""
    rng = torch.Generator().manual_seed(4)
    sources = [torch.randn(48, 24, generator=rng).to(given) for _ in range(2)]
    index, scale = _side(17, 48, 5)
    rows, columns = Selection(index, 17, scale), Identity(24)
    out = _laid_out(torch.full((17, 24), torch.nan, dtype=written), layout, device)
    item = sums.Sum(
        [_laid_out(s, layout, device) for s in sources], [0.5, -1.25], out,
        sums.adjoint(rows, device), sums.forward(columns, device),
    )  # fmt: skip
    sums.Table([item])()
    exact, plain = (
        rows.dense(dtype).t() @ (0.5 * sources[0].to(dtype) - 1.25 * sources[1].to(dtype))
        for dtype in (torch.float64, torch.float32)
    )
    error, allowed = ((t.cpu().double() - exact).norm() for t in (out, plain.to(written)))
    return "" if error <= 2 * allowed else f"error {float(error):.2e}, 2 x {float(allowed):.2e} allowed"


def _normals(count: int, device: torch.device) -> str:
    words = noise.philox(torch.arange(-(-count // 4)), 3, 7).flatten()[:count]
    found = noise.normal((count,), 7, 3, device).cpu()
    return "" if torch.equal(found, noise.from_words(words)) else "not the bits of plain torch"
