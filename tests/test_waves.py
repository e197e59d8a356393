"""How the factors' gradients are split into partial sums: enough of them, none too short."""

from __future__ import annotations

import pytest
import torch

from ligo_fast.compute.waves import SHORTEST, TARGET_PROGRAMS, Wave, factor_gradients
from ligo_fast.kernels.configs import INTERPRETED
from ligo_fast.kernels.expand import Product
from ligo_fast.kernels.table import Matrix

F32 = torch.float32


def wave_of(sums: list[tuple[tuple[int, int], list[int]]]) -> Wave:
    """Of sums with shapes of dC and lengths of their segments, in slots 1, 2, ..."""
    wave = Wave(0, F32, INTERPRETED[1], 128, adjoint=True)
    for slot, ((m, n), lengths) in enumerate(sums, 1):
        for k in lengths:
            pair = Matrix(0, 0, (m, k), (1, m), F32), Matrix(0, 0, (k, n), (n, 1), F32)
            kind = Product(Matrix(0, 0, (m, n), (n, 1), F32), [pair]).kind
            wave.segments[slot, (m, n), kind].append(pair)
    return wave


def lengths(products: list[Product], slot: int) -> list[int]:
    return [sum(a.shape[1] for a, _ in p.segments) for p in products if p.out.slot == slot]


def test_sums_of_biases_are_not_split() -> None:
    """122 of one number each: a part of them would be as large as the sum."""
    products = factor_gradients(wave_of([((256, 512), [1] * 122)]))
    assert lengths(products, 1) == [122]


@pytest.mark.parametrize(
    "segments", [[30522], [512] * 60, [1] * 5000 + [4096], [SHORTEST + 1], [7, 30522, 7]]
)
def test_parts_add_up_and_none_is_short(segments: list[int]) -> None:
    found = lengths(factor_gradients(wave_of([((256, 512), segments)])), 1)
    assert sum(found) == sum(segments)
    assert len(found) == 1 or min(found) > SHORTEST // 2
    assert len(found) <= max(1, round(sum(segments) / SHORTEST))


def test_a_launch_has_about_as_many_programs_as_it_should() -> None:
    """Whatever the number of its sums; and all take about as long."""
    for count in (1, 3, 12):
        sums = [((256, 512), [8192] * 40), ((512, 512), [8192] * 4)][: min(count, 2)] * max(1, count // 2)
        products = factor_gradients(wave_of(sums))
        programs = sum(-(-p.out.shape[0] // 128) * -(-p.out.shape[1] // 128) for p in products)
        assert 0.6 * TARGET_PROGRAMS < programs < 1.4 * TARGET_PROGRAMS
        every = [n for slot in range(1, len(sums) + 1) for n in lengths(products, slot)]
        assert max(every) <= 2 * min(every)
