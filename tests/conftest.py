"""Quiet, offline and single-threaded, so that tests are fast and repeat bit for bit.

The kernels' tests run on LIGO_FAST_TEST_DEVICE: a GPU where there is one, else Triton's interpreter.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

torch.set_num_threads(1)
DEVICE = os.environ.setdefault("LIGO_FAST_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined


from models import on_meta  # noqa: E402  (after the interpreter was chosen)

from ligo_fast import architectures  # noqa: E402


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """LIGO_FAST_TEST_PART=n/m: of the tests that run on the device every m-th, from the n-th on."""
    if part := os.environ.get("LIGO_FAST_TEST_PART"):
        number, parts = map(int, part.split("/"))
        chosen = list(filter(_runs_on_the_device, items))[number - 1 :: parts]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


def _runs_on_the_device(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    return hasattr(item.module, "DEVICE") or "on_kernels" in item.fixturenames


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device(DEVICE)


@pytest.fixture
def on_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the kernels cover is done by them."""
    monkeypatch.setenv("LIGO_FAST_BACKEND", "triton")


@pytest.fixture(params=["interpreter", "sm_90"] if DEVICE == "cpu" else ["device"])
def block_shapes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the device; in the interpreter, whose are small, once more those of an H100.

    For tests that count tiles, programs or launches.
    """
    if request.param == "sm_90":
        from ligo_fast.compute import launching
        from ligo_fast.kernels import blend, configs, tune

        product, of_blend, gpu = configs.product_config, configs.blend_config, torch.device("cuda")
        monkeypatch.setattr(configs, "capability", lambda device: 90)
        for module in (launching, tune):
            monkeypatch.setattr(
                module, "product_config", lambda p, size, align, _: product(p, size, align, gpu)
            )
        for module in (launching, blend):
            monkeypatch.setattr(module, "blend_config", lambda align, _: of_blend(align, gpu))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Path, nn.Module]]:
    """Saves a model; its folder, and the same model on the meta device."""

    def save(small: nn.Module, **options: Any) -> tuple[Path, nn.Module]:
        small.save_pretrained(tmp_path, **options)
        return tmp_path, on_meta(small)

    return save


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
