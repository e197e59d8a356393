"""The compiled part: one optional module. LIGO_FAST_NO_EXT=1 leaves it out."""

import os
import sys
from pathlib import Path

from setuptools import setup


def extensions():
    """`ligo_fast._cpu`; where it cannot be built the package is plain Python and torch does its work."""
    if os.environ.get("LIGO_FAST_NO_EXT") == "1":
        return []
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError:
        print("ligo_fast: no pybind11, so nothing is compiled; torch does the work", file=sys.stderr)
        return []
    return [
        Pybind11Extension(
            "ligo_fast._cpu",
            ["csrc/bind.cpp", "csrc/cpu/blend.cpp"],
            depends=[str(path) for path in sorted(Path("csrc").rglob("*.h"))],
            cxx_std=17,
            extra_compile_args=["-O3"] if os.name != "nt" else [],
            optional=True,  # without a compiler a warning, not an error
        )
    ]


setup(ext_modules=extensions())
