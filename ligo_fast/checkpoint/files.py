"""Files that tensors are read from and written to: mapped, copied by the system, or written from memory."""

from __future__ import annotations

import errno
import mmap
import os
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import GrowthError
from .header import Entry
from .layout import Shard
from .units import Window

# Written at once. 1 MiB and more took 3 to 10 times the processor time on Linux 6.18 in a virtual machine,
# nearly all of it in the kernel's copy: it takes pages of cache as large as the write, which the host may be
# slow to give (not tested). From 64 to 512 KiB sizes differ less than one run does from the next.
PIECE = 128 << 10


class Files:
    """The descriptors of files that are read or written, and mapped tensors of them."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def create(self, path: Path, shard: Shard) -> None:
        """A file of the shard's size, whose bytes the disk has put aside, with its header.

        Raises:
            GrowthError: where the disk is full or cannot be written to.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            self._open[path] = descriptor
            os.posix_fallocate(descriptor, 0, shard.size)
            os.pwrite(descriptor, shard.header, 0)
        except OSError as error:
            raise GrowthError(f"{path.name}: {shard.size} bytes: {error.strerror}") from error

    def read(self, entry: Entry) -> Tensor:
        """A tensor over the bytes of a file, which must not be written to."""
        if entry.start % entry.dtype.itemsize:  # by a careless writer: no address for its dtype
            flat = torch.empty(entry.nbytes, dtype=torch.uint8)
            os.preadv(self.descriptor(entry.file), [flat.numpy()], entry.start)
            return flat.view(entry.dtype).view(entry.shape)
        return _mapped(self.descriptor(entry.file), entry)

    def write(self, t: Tensor, entry: Entry, folder: Path, window: Window | None = None) -> None:
        """Put the values of a tensor, or those of some of its rows and columns, in their place in a file."""
        descriptor, at, pitch = self._open[folder / entry.file], entry.start, 0
        if window is not None:
            at += (window.row * window.width + window.column) * t.itemsize
            pitch = window.width * t.itemsize
        whole = t.is_contiguous() and (window is None or t.shape[1] == window.width)
        for number, run in enumerate([t.view(-1)] if whole else t):
            left, here = memoryview(run.view(torch.uint8).numpy()), at + number * pitch
            while left:
                n = os.pwrite(descriptor, left[: PIECE - here % PIECE], here)
                left, here = left[n:], here + n

    def descriptor(self, path: Path) -> int:
        """Of a file, which is opened for reading if it is not open."""
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY)
        return self._open[path]

    def will_read(self, entry: Entry) -> None:
        """Tell the disk what is needed next."""
        os.posix_fadvise(self.descriptor(entry.file), entry.start, entry.nbytes, os.POSIX_FADV_WILLNEED)

    def copy(self, source: Entry, out: Entry, folder: Path) -> bool:
        """Copy a tensor's bytes without mapping them; False, and nothing done, where the system cannot."""
        done, ends = 0, (self.descriptor(source.file), self._open[folder / out.file])
        while done < source.nbytes:
            try:
                n = os.copy_file_range(*ends, source.nbytes - done, source.start + done, out.start + done)
            except OSError as error:
                if not done and error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    return False
                raise
            if not n:
                raise GrowthError(f"{source.file}: it has become shorter while it was read")
            done += n
        return True

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def _mapped(descriptor: int, entry: Entry) -> Tensor:
    if not entry.nbytes:
        return torch.empty(entry.shape, dtype=entry.dtype)
    first = entry.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    pages = mmap.mmap(descriptor, entry.stop - first, mmap.MAP_SHARED, mmap.PROT_READ, offset=first)
    with warnings.catch_warnings():  # that read-only bytes must not be written to
        warnings.simplefilter("ignore", UserWarning)
        count = entry.nbytes // entry.dtype.itemsize
        flat = torch.frombuffer(pages, dtype=entry.dtype, count=count, offset=entry.start - first)
    return flat.view(entry.shape)


def within(folder: Path, entry: Entry) -> Entry:
    """An entry of a shard that lies in a folder."""
    return replace(entry, file=folder / entry.file)
