"""The products by themselves: what becomes of their operands."""

from __future__ import annotations

import pytest
import torch
from test_kernels import DEVICE, rand
from test_kernels import right_products as right_products
from torch import Tensor

from benchmarks.rounding import float32_product, rounded
from ligo_fast.compute.backend_triton import Job, Plan
from ligo_fast.maps import Dense, Identity


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """a @ b, as the growth of b by a."""
    made = torch.full((a.shape[0], b.shape[1]), torch.nan, device=DEVICE)
    Plan([Job(None, Dense(a), Identity(b.shape[1]), [b], [made], [b], [made])], [], precision).apply()
    return made


@pytest.mark.parametrize("along", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_operands_are_rounded_to_the_nearest(precision: str, along: tuple[bool, bool]) -> None:
    """Sums of positive numbers, where operands that are cut would make every sum too small."""
    a, b = rand(40, 96).abs(), 1 + 0.1 * rand(96, 56)
    x, y = (t if n else t.t().contiguous().t() for t, n in zip((a, b), along, strict=True))
    got = product(x, y, precision)
    want = float32_product(rounded(a, precision), rounded(b, precision))
    # tensor cores cut what they add: each addition may lose a unit in the last place of the sum, which only
    # grows. Operands that are cut, those of one side alone, make every sum here too small by 2e-4 at least.
    rtol = a.shape[1] * 2.0**-23 if DEVICE == "cuda" else 2e-6
    torch.testing.assert_close(got, want, rtol=rtol, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value")  # infinity times zero
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_what_is_not_finite_stays_so(precision: str) -> None:
    """Also the NaN that a GPU makes, whose bits are all ones: one more and it would be minus zero."""
    a, b = torch.zeros(32, 32, device=DEVICE), torch.eye(32, device=DEVICE)
    a[0, 0], a[1, 1] = torch.inf, -torch.inf
    a[2, 2] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32).item()
    got = product(a, b, precision)
    assert got[0, 0] == torch.inf and got[1, 1] == -torch.inf and got[2].isnan().all()
    assert torch.equal(got[3:], a[3:])


def test_the_largest_finite_number_rounds_to_infinity() -> None:
    """As `cvt.rna.tf32.f32` does."""
    largest = torch.finfo(torch.float32).max
    assert rounded(torch.tensor([largest, -largest]), "tf32").tolist() == [torch.inf, -torch.inf]
