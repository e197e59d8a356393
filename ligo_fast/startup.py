"""Importing torch for a command that grows one checkpoint and ends."""

from __future__ import annotations

import gc
import os
import sys


def load_torch() -> None:
    """Import torch with threads that sleep while they have nothing to do, beside a thread that hashes.

    The collector is off meanwhile: it would look through all that was imported again and again, for nothing.
    """
    if "torch" in sys.modules:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # what hashes and writes needs the core
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's products, of which there are none
    sys.setswitchinterval(0.0005)  # so long a thread that hashes or writes waits for Python's lock: not 5 ms
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
