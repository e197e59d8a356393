"""Tensors between files: sources mapped, what is grown written into pre-sized shards.

Tensors that stay as they are the system copies from file to file. All else is grown in memory, `BATCH_BYTES`
at a time, and written by a second thread while the next are grown: the first touch of a page of a mapped new
file takes longer than to copy it. A mapping lives as long as the tensors on it, so what is resident is the
sources of one family of a method that mixes layers, or of one batch. What is written starts on its way to
the disk while the next batches are grown, and then leaves the page cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import GrowthError
from .device import Direct, Staged
from .digests import Grown
from .files import Files
from .header import Entry
from .layout import Shard
from .units import Unit, Window, batches

BATCH_BYTES = 64 << 20  # grown and written at once, in one of two buffers
FLUSH_BYTES = 256 << 20  # after so many bytes the disk is told to begin


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
    grown_as = None if digests is None else Grown(digests, files, folder)
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
    grown_as: Grown | None,
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


def _moved(
    unit: Unit, small: Mapping[str, Entry], large: Mapping[str, Entry], files: Files, folder: Path
) -> bool:
    """Whether a tensor that stays as it is was copied by the system."""
    source, out = small[unit.small[0]], large[unit.large[0]]
    return source.dtype == out.dtype and files.copy(source, out, folder)


def _sizes(entries: Mapping[str, Entry]) -> dict[str, int]:
    return {name: e.nbytes for name, e in entries.items()}
