"""The compiled part: one module, optional. LIGO_FAST_NO_EXT=1 leaves it out."""

import os
from pathlib import Path

from setuptools import setup


def extensions():
    """`ligo_fast._cpu` where pybind11 is at hand; without a compiler the build goes on in plain Python."""
    if os.environ.get("LIGO_FAST_NO_EXT") == "1":
        return []
    from pybind11.setup_helpers import Pybind11Extension

    headers = [str(path) for path in sorted(Path("csrc").rglob("*.h"))]
    return [
        Pybind11Extension(
            "ligo_fast._cpu",
            ["csrc/bind.cpp", "csrc/cpu/blend.cpp"],
            depends=headers,
            cxx_std=17,
            extra_compile_args=["-O3"],
            optional=True,  # no compiler: a warning, and torch does the work
        )
    ]


setup(ext_modules=extensions())
