"""Autotuning: the fastest candidate is found once and remembered on disk."""

from __future__ import annotations

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
    return tmp_path / "ligo_fast" / "tune.json"


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
    assert [p.name for p in cache.parent.iterdir()] == ["tune.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}'])
def test_a_broken_file_is_made_anew(cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert tune.tuned(KIND, "tf32", CPU, measure) == FASTEST
    assert tune.tuned(KIND, "tf32", CPU, fail) == FASTEST


def test_only_on_request(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.delenv("LIGO_FAST_AUTOTUNE")
    assert tune.tuned(KIND, "tf32", CPU, fail) == product_config("tf32", "wide", 4, CPU)
    assert not cache.exists()
