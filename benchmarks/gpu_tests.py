"""Which tests run on the device: those that use DEVICE or the fixture `on_kernels`."""

from __future__ import annotations

import importlib.util
import re

from benchmarks.jobs import ROOT

# what those files import beside torch and triton
NEEDS = ("pytest", "hypothesis", "transformers")
USES = re.compile(r"\b(DEVICE|on_kernels)\b")


def files() -> list[str]:
    """Files with at least one such test; tests/conftest.py picks the tests, and a part of them."""
    found = sorted((ROOT / "tests").glob("test_*.py"))
    return [f"tests/{f.name}" for f in found if USES.search(f.read_text())]


def lacking() -> list[str]:
    """The modules that are needed and not installed."""
    return [name for name in NEEDS if importlib.util.find_spec(name) is None]
