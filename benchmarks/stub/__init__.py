"""Triton's launches on a machine without a GPU, into a CUDA driver that does nothing (libcuda.c).

Kernels are compiled for sm_90 and handed to Triton's own launcher with tensors of the CPU; none runs.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

GRID, THREADS, SHARED, STREAM, FUNCTION, PARAMETERS = 0, 3, 4, 5, 6, 7  # places in what `Stub.last` gives
LAUNCHES, NUMBERS = 64, 12  # as in libcuda.c


class Stub:
    """The driver in its place; for a process of its own, before Triton has looked for another.

    `ligo_fast`'s kernels must be imported without TRITON_INTERPRET; later their plans take tensors of the CPU
    where it is 1, so `install` sets it.

    Args:
        folder: where the driver is compiled to.
    """

    def __init__(self, folder: Path) -> None:
        source, made = Path(__file__).with_name("libcuda.c"), folder / "libcuda.so.1"
        compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
        subprocess.run(
            [*compiler.split(), "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", source, "-o", made],
            check=True,
        )
        os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
        self._driver = ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)
        self._count = ctypes.c_int64.in_dll(self._driver, "launch_count")
        self._launches = (ctypes.c_int64 * (LAUNCHES * NUMBERS)).in_dll(self._driver, "launches")

        from triton.backends.compiler import GPUTarget
        from triton.backends.nvidia.driver import CudaDriver
        from triton.runtime import driver

        import ligo_fast.compute.backend_triton  # noqa: F401  (no kernel is interpreted)

        cuda, target = CudaDriver(), GPUTarget("cuda", 90, 32)
        cuda.get_current_target = lambda: target
        cuda.get_current_device = lambda: 0
        self.stream = 0
        cuda.get_current_stream = lambda device: self.stream
        driver.set_active(cuda)
        os.environ["TRITON_INTERPRET"] = "1"

    @property
    def launches(self) -> int:
        """How many there were."""
        return int(self._count.value)

    def last(self, count: int) -> list[tuple[int, ...]]:
        """The last ones, 64 at most: grid (3), threads, shared memory, stream, kernel, parameters (5)."""
        rows = (n % LAUNCHES * NUMBERS for n in range(self.launches - count, self.launches))
        return [tuple(self._launches[row : row + NUMBERS]) for row in rows]
