"""A folder appears whole or not at all: it is made under another name beside its place, then renamed.

At every moment, whatever is killed, the place is empty, or has the old folder, or the new one. Replacing an
old folder exchanges the two names in one system call (Linux' renameat2); where that is missing the old one
is renamed away first, so that the place is empty for a moment, and the next run puts it back should this one
be killed then.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import GrowthError
from .folder import check_replaceable

AT_FDCWD, RENAME_EXCHANGE = -100, 2


def check_target(out: Path, overwrite: bool) -> None:
    """Whether a folder may be made, or replaced, there.

    Raises:
        GrowthError: for a place that is taken, or has no parent folder; with `overwrite`, for a folder that
            is no checkpoint or holds what is no part of one.
    """
    if not out.parent.is_dir():
        raise GrowthError(f"{out}: its parent folder does not exist")
    if out.exists() and not out.is_dir():
        raise GrowthError(f"{out}: a file is there")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise GrowthError(f"{out}: not empty; --overwrite replaces it")
        check_replaceable(out)


@contextlib.contextmanager
def replaced(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well, and disappears when it does not.

    Raises:
        GrowthError: for a place that is taken or cannot be written to.
    """
    out = Path(os.path.realpath(out))
    try:
        clean_up(out)
        check_target(out, overwrite)
        temporary, lock = _locked(out)
    except OSError as error:
        raise GrowthError(f"{out}: {error.strerror}") from error
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        sync(temporary)
        try:
            check_target(out, overwrite)  # again: growing takes a while
            _commit(temporary, out, overwrite)
        except OSError as error:
            raise GrowthError(f"{out}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # what failed, or the folder that was replaced
        os.close(lock)


def _commit(temporary: Path, out: Path, overwrite: bool) -> None:
    if not (overwrite and out.is_dir() and any(out.iterdir())):
        os.rename(temporary, out)  # the system refuses a place that was filled meanwhile
    elif not exchange(temporary, out):
        old = Path(tempfile.mkdtemp(prefix=f"{_prefix(out)}old-", dir=out.parent))
        os.rename(out, old)
        os.rename(temporary, out)
        sync(out.parent)
        shutil.rmtree(old, ignore_errors=True)
    sync(out.parent)


def exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step; False where the system cannot.

    Raises:
        OSError: for what went wrong otherwise.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(b))


def sync(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clean_up(out: Path) -> None:
    """Remove what killed runs left beside `out`, and put back an old folder that one had renamed away."""
    for leftover in map(Path, glob.glob(f"{glob.escape(str(out.parent / _prefix(out)))}*")):
        lock = _lock(leftover)
        if lock is None:
            continue  # of a run that lives
        if leftover.name.startswith(f"{_prefix(out)}old-") and not out.exists() and any(leftover.iterdir()):
            os.rename(leftover, out)
        else:
            shutil.rmtree(leftover, ignore_errors=True)
        os.close(lock)


def _prefix(out: Path) -> str:
    return f".{out.name}.ligo-fast-"


def _locked(out: Path) -> tuple[Path, int]:
    """A new folder beside `out`, and a lock on it that goes with this process."""
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
        try:
            lock = _lock(temporary)
        except BaseException:
            temporary.rmdir()
            raise
        if lock is not None and temporary.exists():  # no other run cleaned it up in between
            return temporary, lock


def _lock(folder: Path) -> int | None:
    import fcntl  # not there on every system that the rest of the package runs on

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
