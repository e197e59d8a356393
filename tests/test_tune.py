"""Autotuning: the fastest candidate is found once and remembered on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ligo_fast.kernels import tune
from ligo_fast.kernels.configs import ProductConfig, product_config
from ligo_fast.kernels.expand import Kind

CPU = torch.device("cpu")
KIND = Kind(torch.float32, torch.float32, torch.float32, True, True, 4, "wide")
FASTEST = tune.CANDIDATES["wide"][3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LIGO_FAST_AUTOTUNE", "1")
    return tmp_path / "ligo_fast" / "tune"


def measure(kind: Kind, precision: str, config: ProductConfig, device: torch.device) -> float:
    return 1.0 if config == FASTEST else 2.0


def fail(*_: Any) -> float:
    pytest.fail("measured again")


def test_the_fastest_is_remembered_on_disk(cache: Path) -> None:
    assert tune.tuned(KIND, "tf32", CPU, measure) == FASTEST
    assert tune.tuned(KIND, "tf32", CPU, fail) == FASTEST
    assert tune.tuned(KIND._replace(size="thin"), "tf32", CPU, measure) in tune.CANDIDATES["thin"] + [
        product_config("tf32", "thin", 4, CPU)
    ]
    assert tune.tuned(KIND, "tf32", CPU, fail) == FASTEST, "another kind's entry leaves this one alone"
    assert [p.suffix for p in cache.iterdir()] == [".json"] * 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "[1, 2]"])
def test_a_broken_file_is_made_anew(cache: Path, content: str) -> None:
    tune.tuned(KIND, "tf32", CPU, measure)
    (file,) = cache.iterdir()
    file.write_text(content)
    assert tune.tuned(KIND, "tf32", CPU, measure) == FASTEST
    assert tune.tuned(KIND, "tf32", CPU, fail) == FASTEST
    assert list(cache.iterdir()) == [file]


def test_the_first_process_that_has_measured_decides(cache: Path) -> None:
    """Replicas with different block shapes would round differently."""
    other = tune.CANDIDATES["wide"][0]

    def slow(kind: Kind, precision: str, config: ProductConfig, device: torch.device) -> float:
        if not cache.exists():  # another one is done meanwhile
            assert tune.tuned(kind, precision, device, lambda *a: 1.0 if a[2] == other else 2.0) == other
        return measure(kind, precision, config, device)

    assert tune.tuned(KIND, "tf32", CPU, slow) == other
    assert len(list(cache.iterdir())) == 1


def test_it_is_measured_on_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[object] = []

    @contextlib.contextmanager
    def device(of: torch.device) -> Iterator[None]:
        current.append(of)
        yield
        current.pop()

    def times(kind: Kind, precision: str, config: ProductConfig, of: torch.device) -> list[float]:
        assert current == [of]
        return [3.0, 1.0, 2.0] if config == FASTEST else []

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(tune, "_times", times)
    gpu = torch.device("cuda", 1)
    assert tune.seconds(KIND, "tf32", FASTEST, gpu) == 2.0
    assert tune.seconds(KIND, "tf32", tune.CANDIDATES["wide"][0], gpu) == float("inf")


def test_only_on_request(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.delenv("LIGO_FAST_AUTOTUNE")
    assert tune.tuned(KIND, "tf32", CPU, fail) == product_config("tf32", "wide", 4, CPU)
    assert not cache.exists()
