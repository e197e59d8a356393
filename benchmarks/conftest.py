"""What the files for pytest-benchmark share."""

from __future__ import annotations

import pytest
import torch

from ligo_fast.bench.timing import Stopwatch


@pytest.fixture(scope="session")
def cold() -> Stopwatch:
    """Its `flush` drives everything out of the caches."""
    return Stopwatch(torch.device("cpu"))
