"""The order of a launch's tiles: every tile once, and those that run at once share what they read."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from ligo_fast.kernels import expand
from ligo_fast.kernels.configs import BAND
from ligo_fast.kernels.table import Matrix, Slots, tiles

DEVICE = torch.device(os.environ["LIGO_FAST_TEST_DEVICE"])
SHAPES = [(70, 200), (33, 64), (1, 500), (0, 90), (64, 65)]


def test_bands_hold_every_tile_once_under_its_number() -> None:
    plain, banded = tiles(SHAPES, 32, 16), tiles(SHAPES, 32, 16, band=64)
    assert plain.shape == banded.shape and plain.dtype == banded.dtype == np.int32
    assert sorted(map(tuple, plain)) == sorted(map(tuple, banded))
    assert np.array_equal(banded[:, 0], np.sort(banded[:, 0])), "item after item"
    narrow = [n for n, (_, columns) in enumerate(SHAPES) if columns <= 64]
    for item in narrow:
        assert np.array_equal(plain[plain[:, 0] == item], banded[banded[:, 0] == item])
    first = banded[banded[:, 0] == 0][:4]
    assert first[:, 1:].tolist() == [[0, 0, 0], [32, 0, 13], [0, 16, 1], [32, 16, 14]]


def reads(work: np.ndarray, at_once: int = 132) -> int:
    """Rows and columns of tiles that the tiles running at once read, each once; summed over such waves."""
    count = 0
    for start in range(0, len(work), at_once):
        wave = work[start : start + at_once]
        count += sum(len(np.unique(wave[:, [0, n]], axis=0)) for n in (1, 2))
    return count


@pytest.mark.parametrize(
    ("shape", "share"),  # products that make 2048 units of a 1.1B Llama 4096, and 5632 of them 14336
    [((2048, 5632), 0.52), ((2048, 8704), 0.37), ((8704, 5632), 0.59), ((8704, 2048), 1), ((32000, 2048), 1)],
)
def test_bands_read_less_where_b_is_wide(shape: tuple[int, int], share: float) -> None:
    """Counted, not measured: with 128 x 128 tiles, one on each of 132 multiprocessors."""
    rows, bands = (reads(tiles([shape], 128, 128, band)) for band in (1 << 31, BAND))
    assert bands == pytest.approx(share * rows, rel=0.02)


@pytest.mark.usefixtures("block_shapes")
def test_the_order_leaves_every_bit() -> None:
    a, b = torch.randn(70, 40, device=DEVICE), torch.randn(40, 200, device=DEVICE)
    outs = []
    for band in (1 << 31, 128):
        slots, out = Slots(DEVICE), torch.full((70, 200), torch.nan, device=DEVICE)
        made, left, right = (Matrix.of(t, slots.add(t), t) for t in (out, a, b))
        slots.upload()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(expand, "BAND", band)
            launch = expand.ProductLaunch([expand.Product(made, [(left, right)])], slots, "ieee")
        launch(slots.pointers)
        outs.append((launch.tables[-1].cpu().numpy(), out))
    assert not np.array_equal(outs[0][0], outs[1][0])
    assert torch.equal(outs[0][1], outs[1][1])
    torch.testing.assert_close(outs[0][1], a @ b)
