"""Importing torch for a command that grows one checkpoint and ends."""

from __future__ import annotations

import gc
import os
import sys


def load_torch() -> None:
    """Import torch a little sooner, with threads that sleep while they have nothing to do.

    The collector looks through all that an import has made so far again and again, and finds nothing.
    """
    if "torch" in sys.modules:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # what hashes and writes needs the core
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's products, of which there are none
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
