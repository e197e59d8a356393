"""`python -m ligo_fast info`, with and without the compiled parts."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from ligo_fast import info
from ligo_fast.compute.backend_select import why_not_select
from ligo_fast.native import cpu, cuda


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ligo_fast", *args]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def test_info_names_versions_and_backends() -> None:
    done = run("info", LIGO_FAST_NO_EXT="1", LIGO_FAST_BACKEND="auto")
    assert done.returncode == 0, done.stderr
    for word in ("ligo_fast", "python", "torch", "triton", "backend compiled, CUDA"):
        assert word in done.stdout
    assert done.stdout.count("switched off by LIGO_FAST_NO_EXT=1") == 3


def test_another_command_is_an_error() -> None:
    done = run("imfo")
    assert done.returncode != 0 and "usage" in done.stderr.lower()


def test_a_backend_asked_for_in_vain_is_a_line_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGO_FAST_BACKEND", "cobol")
    assert "none of" in info.report()


class OldDriver:
    """The compiled part where the driver is too old."""

    architectures = "80 90a"

    def device_count(self) -> tuple[int, str, int]:
        return 35, "CUDA driver version is insufficient", 0

    def versions(self) -> tuple[int, int]:
        return 12000, 13000


def test_a_driver_that_does_not_fit_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "extension", OldDriver())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    cuda.why_not.cache_clear()
    try:
        with pytest.warns(UserWarning, match="insufficient"):
            assert "CUDA error 35" in cuda.why_not()
        assert "80 90a" in info.report() and "insufficient" in info.report()  # and no second warning
    finally:
        cuda.why_not.cache_clear()


@pytest.mark.parametrize(
    ("answer", "capability", "why"),
    [
        ((35, "CUDA driver version is insufficient", 0), (9, 0), "insufficient"),
        ((3, "initialization error", 0), (9, 0), "initialization"),
        ((0, "", 0), (9, 0), "no CUDA device"),
        ((0, "", 1), (7, 0), "device 0 is sm_70, the binary is for 80 90a"),
        ((0, "", 1), (12, 0), "device 0 is sm_120"),
    ],
    ids=["old driver", "other error", "no device", "old device", "new device"],
)
def test_growth_falls_back_to_torch_with_one_warning(
    answer: tuple[int, str, int], capability: tuple[int, int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A selection, sums and noise for a CUDA device ask it, and warn once in all."""
    driver = OldDriver()
    driver.device_count = lambda: answer  # type: ignore[method-assign]
    monkeypatch.setattr(cuda, "extension", driver)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.delenv("LIGO_FAST_BACKEND", raising=False)
    cuda.why_not.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                assert why in why_not_select(torch.device("cuda"))
        assert [why in str(w.message) for w in caught] == [True]
    finally:
        cuda.why_not.cache_clear()


def test_no_driver_and_no_torch_for_it_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "extension", OldDriver())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cuda.why_not.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "insufficient" in cuda.why_not()
    finally:
        cuda.why_not.cache_clear()


@pytest.mark.parametrize(
    ("architectures", "runs", "not_"),
    [
        ("80 86 89 90a 100 100+PTX", [(8, 0), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)], [(7, 5)]),
        ("86 90a", [(8, 6), (8, 9), (9, 0)], [(8, 0), (9, 1), (10, 0)]),
    ],
)
def test_which_devices_a_binary_runs_on(
    architectures: str, runs: list[tuple[int, int]], not_: list[tuple[int, int]]
) -> None:
    assert all(cuda.runs_on(architectures, *device) for device in runs)
    assert not any(cuda.runs_on(architectures, *device) for device in not_)


@pytest.mark.skipif(cpu.extension is None, reason=f"the extension is {cpu.state}")
def test_the_instructions_in_use_are_named() -> None:
    assert f"on: {cpu.state}" in info.report()
