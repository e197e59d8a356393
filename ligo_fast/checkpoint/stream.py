"""Tensors between files: sources mapped, what is grown written into pre-sized shards.

Tensors that stay as they are the system copies from file to file. All else is grown in memory, `BATCH_BYTES`
at a time, and written by a second thread while the next are grown: the first touch of a page of a mapped new
file takes longer than to copy it. A mapping lives as long as the tensors on it, so what is resident is the
sources of one family of a method that mixes layers, or of one batch. What is written starts on its way to
the disk while the next batches are grown, and then leaves the page cache.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import GrowthError
from .device import Direct, Staged
from .header import Entry
from .layout import Shard
from .units import Unit, Window, batches

BATCH_BYTES = 64 << 20  # grown and written at once, in one of two buffers
PIECE = 64 << 10  # written at once: for more, Linux 6.18 seeks large pages and takes 3 to 6 times as long
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
FLUSH_BYTES = 256 << 20  # after so many bytes the disk is told to begin


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


def write_shards(
    engine: Direct | Staged,
    units: Sequence[Unit],
    small: Mapping[str, Entry],
    shards: Sequence[Shard],
    folder: Path,
    progress: Callable[[int], None],
    digests: dict[str, str] | None = None,
) -> None:
    """Grow every unit into the shards' files in `folder`, which are on the disk when this returns.

    Args:
        small: the source's tensors. progress: told how many bytes were grown, batch by batch.
        digests: receives the sha256 of every tensor as it was grown; of one that is written in parts, which
            are compared with the file each, that of the file.

    Raises:
        GrowthError: where the disk is full or cannot be written to.
        VerifyError: with `digests`, for a part that the file does not have.
    """
    large = {name: entry for shard in shards for name, entry in shard.entries.items()}
    files, work = Files(), [*batches(units, _sizes(large), BATCH_BYTES)]
    grown_as = None if digests is None else _Grown(digests, files, folder)
    asked: list[Future[list[Future[None]]]] = []
    with ThreadPoolExecutor(1) as disk, ThreadPoolExecutor(1) as writer:
        try:
            for shard in shards:
                files.create(folder / shard.name, shard)
            pending, dirty = 0, dict[Path, None]()
            for n, batch in enumerate(work):
                for unit in work[n + 1] if n + 1 < len(work) else []:
                    for name in unit.small:
                        files.will_read(small[name])
                _grow(engine, batch, small, large, files, folder, grown_as, writer)
                written = [large[name] for unit in batch for name in unit.large]
                dirty |= {folder / e.file: None for e in written}
                grown = sum(e.nbytes for e in written)
                pending += grown
                if pending >= FLUSH_BYTES:
                    flushing = [partial(_flush, files.descriptor(p)) for p in dirty]
                    asked.append(writer.submit(lambda f: [*map(disk.submit, f)], flushing))  # after the bytes
                    pending, dirty = 0, {}
                progress(grown)
            engine.finish()
            if grown_as is not None:
                grown_as.finish(large)
            flushes = [flush for some in asked for flush in some.result()]
            flushes += [disk.submit(os.fsync, files.descriptor(folder / s.name)) for s in shards]
            for flush in flushes:
                flush.result()
        except OSError as error:
            raise GrowthError(f"{folder}: {error.strerror}") from error
        finally:
            writer.shutdown(cancel_futures=True)  # before its files are closed
            disk.shutdown(cancel_futures=True)
            files.close()


def _flush(descriptor: int) -> None:
    """Bring a file to the disk, and out of memory what has got there: the next bytes take its pages.

    Fresh ones are slow to come by: other files' must go first, or a virtual machine asks its host for them.
    """
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _grow(
    engine: Direct | Staged,
    batch: Sequence[Unit],
    small: Mapping[str, Entry],
    large: Mapping[str, Entry],
    files: Files,
    folder: Path,
    grown_as: _Grown | None,
    writer: Executor,
) -> None:
    """One batch, whose mappings have ended when this returns."""
    batch = [
        unit
        for unit in batch
        if grown_as is not None or not unit.moves or not _moved(unit, small, large, files, folder)
    ]
    if not batch:
        return
    sources = {s: files.read(small[s]) for unit in batch for s in unit.small}
    entries = {name: large[name] for unit in batch for name in unit.large}
    like = {n: torch.empty(e.shape, dtype=e.dtype, device="meta") for n, e in entries.items()}

    def write(outs: Mapping[str, Tensor], window: Window | None) -> None:
        for name, t in outs.items():
            if t.dtype == torch.float16 and (bad := t.numel() - int(torch.isfinite(t).sum())):
                limit = torch.finfo(t.dtype).max
                raise GrowthError(f"tensor {name}: {bad} grown values are NaN or beyond float16's {limit:g}")
            files.write(t, entries[name], folder, window)
            if grown_as is not None:
                grown_as.add(name, t, entries[name], window)

    engine.grow(batch, sources, like, lambda *grown: writer.submit(write, *grown), BATCH_BYTES)


class _Grown:
    """Digests of tensors as they were grown, which `verify` compares with what the disk returns."""

    def __init__(self, digests: dict[str, str], files: Files, folder: Path) -> None:
        self._digests, self._files, self._folder = digests, files, folder
        self._written = Counter[str]()

    def add(self, name: str, t: Tensor, entry: Entry, window: Window | None) -> None:
        """What was written: all of a tensor, or a part, which the file must have at its rows and columns."""
        if window is None:
            self._digests[name] = _digest(t)
            return
        there = self._files.read(_within(self._folder, entry)).view(-1, window.width)
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
            self._digests[name] = _digest(self._files.read(_within(self._folder, entry)))


def _moved(
    unit: Unit, small: Mapping[str, Entry], large: Mapping[str, Entry], files: Files, folder: Path
) -> bool:
    """Whether a tensor that stays as it is was copied by the system."""
    source, out = small[unit.small[0]], large[unit.large[0]]
    return source.dtype == out.dtype and files.copy(source, out, folder)


def _digest(t: Tensor) -> str:
    return hashlib.sha256(t.view(-1).view(torch.uint8).numpy()).hexdigest()


def _sizes(entries: Mapping[str, Entry]) -> dict[str, int]:
    return {name: e.nbytes for name, e in entries.items()}


def verify(shards: Sequence[Shard], folder: Path, digests: Mapping[str, str]) -> None:
    """Read the shards again, from the disk, and compare.

    Raises:
        GrowthError: for a tensor that is not as it was grown, or not finite.
    """
    files = Files()
    try:
        for shard in shards:
            descriptor = files.descriptor(folder / shard.name)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for name, entry in shard.entries.items():
                t = files.read(_within(folder, entry))
                if _digest(t) != digests[name]:
                    raise VerifyError(
                        f"{shard.name}: tensor {name}: what the disk returns is not what was grown"
                    )
                if bad := t.numel() - int(torch.isfinite(t).sum()):
                    raise VerifyError(f"{shard.name}: tensor {name}: {bad} values are NaN or infinite")
    finally:
        files.close()


def _within(folder: Path, entry: Entry) -> Entry:
    return replace(entry, file=folder / entry.file)


class VerifyError(GrowthError):
    """What was written is not what it should be."""


def hash_file(path: Path, block: int = 4 << 20) -> str:
    """sha256 of a file's bytes."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(block))
    with path.open("rb", buffering=0) as stream:
        while n := stream.readinto(buffer):
            digest.update(buffer[:n])
    return digest.hexdigest()
