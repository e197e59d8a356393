"""Hashes of the tensors as they were grown, and comparing what the disk returns with them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import VerifyError
from .files import Files, within
from .header import Entry
from .layout import Shard
from .units import Window

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Grown:
    """Digests of tensors as they were grown, which `verify` compares with what the disk returns."""

    def __init__(self, digests: dict[str, str], files: Files, folder: Path) -> None:
        self._digests, self._files, self._folder = digests, files, folder
        self._written = Counter[str]()

    def add(self, name: str, t: Tensor, entry: Entry, window: Window | None) -> None:
        """What was written: all of a tensor, or a part, which the file must have at its rows and columns."""
        if window is None:
            self._digests[name] = _digest(t)
            return
        there = self._files.read(within(self._folder, entry)).view(-1, window.width)
        there = there[window.row :, window.column :][: t.shape[0], : t.shape[1]]
        bits = BITS[t.itemsize]  # NaN is like NaN: `verify` speaks of those
        if not torch.equal(there.view(bits), t.view(bits)):
            raise VerifyError(f"{entry.file}: tensor {name}: a part of the file is not what was grown")
        self._written[name] += t.nbytes

    def finish(self, large: Mapping[str, Entry]) -> None:
        """Digests of those that were written in parts, all of which must have been."""
        for name in large.keys() - self._digests.keys():
            entry, n = large[name], self._written[name]
            if n != entry.nbytes:
                raise VerifyError(f"{entry.file}: tensor {name}: {n} of {entry.nbytes} bytes were written")
            self._digests[name] = _digest(self._files.read(within(self._folder, entry)))


def _digest(t: Tensor) -> str:
    return hashlib.sha256(t.view(-1).view(torch.uint8).numpy()).hexdigest()


def verify(shards: Sequence[Shard], folder: Path, digests: Mapping[str, str]) -> None:
    """Read the shards again, from the disk, and compare.

    Raises:
        VerifyError: for a tensor that is not as it was grown, or not finite.
    """
    files = Files()
    try:
        for shard in shards:
            descriptor = files.descriptor(folder / shard.name)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for name, entry in shard.entries.items():
                t = files.read(within(folder, entry))
                if _digest(t) != digests[name]:
                    raise VerifyError(
                        f"{shard.name}: tensor {name}: what the disk returns is not what was grown"
                    )
                if bad := t.numel() - int(torch.isfinite(t).sum()):
                    raise VerifyError(f"{shard.name}: tensor {name}: {bad} values are NaN or infinite")
    finally:
        files.close()
