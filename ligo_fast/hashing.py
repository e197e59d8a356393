"""sha256 of a checkpoint's files, in a thread: while torch is imported, and while the weights are grown.

Nothing here needs torch. Hashing lets go of Python's lock, reading too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

from .errors import GrowthError

BLOCK = 4 << 20  # read at a time
SEEN = ("st_ino", "st_size", "st_mtime_ns")


class Hashes:
    """Hashes of files, one file after the other; what is not done when the `with` block ends is given up."""

    def __init__(self) -> None:
        self._thread, self._stop = ThreadPoolExecutor(1), Event()
        self._begun: dict[Path, Future[tuple[str, os.stat_result]]] = {}

    def __enter__(self) -> Hashes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    def begin(self, *files: Path) -> None:
        """Hash these files as well."""
        for file in files:
            if file not in self._begun:
                self._begun[file] = self._thread.submit(hash_file, file, self._stop)

    def begin_folder(self, folder: Path) -> None:
        """Hash what looks like the weights of a Hugging Face checkpoint folder, before it is checked."""
        if os.path.isdir(folder):  # which raises for no name, however long
            self.begin(*sorted(folder.glob("model*.safetensors")))

    def of(self, files: Iterable[Path]) -> dict[str, str]:
        """The hashes by file name, of files that have not changed since they were hashed.

        Raises:
            GrowthError: for a file that has, naming it.
            OSError: for one that cannot be read.
        """
        files = list(files)
        self.begin(*files)
        found = {}
        for file in files:
            found[file.name], before = self._begun[file].result()
            now = os.stat(file)
            if any(getattr(now, field) != getattr(before, field) for field in SEEN):
                raise GrowthError(f"{file}: the file has changed while it was read")
        return found


def hash_file(path: Path, stop: Event | None = None) -> tuple[str, os.stat_result]:
    """sha256 of a file's bytes, or of its beginning when told to stop; and what the file was before."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        buffer = memoryview(bytearray(min(BLOCK, max(1, before.st_size))))
        while (stop is None or not stop.is_set()) and (n := stream.readinto(buffer)):
            digest.update(buffer[:n])
    return digest.hexdigest(), before
