"""Launches as Triton makes them, into a driver that does nothing: no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from ligo_fast.kernels import launch

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's stub is a library of Linux")
def test_launches_without_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTEST_ADDOPTS")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "tests/launched.py"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and " skipped" not in done.stdout, done.stdout + done.stderr


def test_this_release_of_triton_is_known() -> None:
    assert launch.KNOWN, f"triton {triton.__version__}: see ligo_fast.kernels.launch.RELEASES"
