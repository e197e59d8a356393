"""`python -m ligo_fast info`, with and without the compiled parts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ligo_fast import cpu, cuda, info


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ligo_fast", *args]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def test_info_names_versions_and_backends() -> None:
    done = run("info", LIGO_FAST_NO_EXT="1", LIGO_FAST_BACKEND="auto")
    assert done.returncode == 0, done.stderr
    for word in ("ligo_fast", "python", "torch", "triton", "backend compiled, CUDA"):
        assert word in done.stdout
    assert done.stdout.count("switched off by LIGO_FAST_NO_EXT=1") == 2


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
    cuda.why_not.cache_clear()
    try:
        with pytest.warns(UserWarning, match="insufficient"):
            assert "CUDA error 35" in cuda.why_not()
        assert "80 90a" in info.report() and "insufficient" in info.report()  # and no second warning
    finally:
        cuda.why_not.cache_clear()


@pytest.mark.skipif(cpu.extension is None, reason=f"the extension is {cpu.state}")
def test_the_instructions_in_use_are_named() -> None:
    assert f"on: {cpu.state}" in info.report()
