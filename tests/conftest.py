"""Quiet, offline and single-threaded, so that tests are fast and repeat bit for bit.

The kernels' tests run on LIGO_FAST_TEST_DEVICE: a GPU where there is one, else Triton's interpreter.
"""

import os
from collections.abc import Iterator

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)
DEVICE = os.environ.setdefault("LIGO_FAST_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined


from ligo_fast import architectures  # noqa: E402  (after the interpreter was chosen)


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device(DEVICE)


@pytest.fixture
def on_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the kernels cover is done by them."""
    monkeypatch.setenv("LIGO_FAST_BACKEND", "triton")


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts from the same random state, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_architectures() -> Iterator[None]:
    """An architecture that a test registers is gone after it."""
    before = dict(architectures._REGISTRY)
    yield
    architectures._REGISTRY.clear()
    architectures._REGISTRY.update(before)
