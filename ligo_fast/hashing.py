"""A checkpoint's files read in a thread, while torch is imported and the weights are grown: their sha256, and
whether all their values are finite.

Nothing here needs torch. Hashing lets go of Python's lock, reading too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import NamedTuple

from .errors import GrowthError
from .native.finite import KEPT, NotFinite

BLOCK = 4 << 20  # read at a time
SEEN = ("st_ino", "st_size", "st_mtime_ns")


class Read(NamedTuple):
    """What a file is: its sha256, how it looked before, and its tensors with NaN or infinite values."""

    sha256: str
    before: os.stat_result
    not_finite: dict[str, int]


class Hashes:
    """Hashes of files, one file after the other; what is not done when the `with` block ends is given up."""

    def __init__(self) -> None:
        self._thread, self._stop = ThreadPoolExecutor(1), Event()
        self._begun: dict[Path, Future[Read]] = {}

    def __enter__(self) -> Hashes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    def begin(self, *files: Path) -> None:
        """Hash these files as well."""
        for file in files:
            if file not in self._begun:
                self._begun[file] = self._thread.submit(read_file, file, self._stop)

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
        return {file.name: self._read(file).sha256 for file in files}

    def not_finite(self, file: Path) -> dict[str, int]:
        """How many values of its tensors are NaN or infinite, of those that have any; raises as `of` does."""
        return self._read(file).not_finite

    def _read(self, file: Path) -> Read:
        self.begin(file)
        read, now = self._begun[file].result(), os.stat(file)
        if any(getattr(now, field) != getattr(read.before, field) for field in SEEN):
            raise GrowthError(f"{file}: the file has changed while it was read")
        return read


def read_file(path: Path, stop: Event | None = None) -> Read:
    """What a file is, or its beginning when told to stop."""
    digest, at = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        values = NotFinite(stream.fileno()) if path.suffix == ".safetensors" else None
        buffer = memoryview(bytearray(KEPT + min(BLOCK, max(1, before.st_size))))
        while (stop is None or not stop.is_set()) and (n := stream.readinto(buffer[KEPT:])):
            digest.update(buffer[KEPT : KEPT + n])
            if values is not None:
                values.look(buffer, at, n)
                buffer[:KEPT] = bytes(buffer[n : n + KEPT])
            at += n
    return Read(digest.hexdigest(), before, {} if values is None else dict(values.found))
