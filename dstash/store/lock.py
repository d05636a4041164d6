"""A lock that allows one process per directory: an flock, which the kernel releases at exit."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dstash.errors import StoreError, StoreInUse
from dstash.store.disk_space import FULL

#: Size of the note with the holder's process id. It is fixed, so that the note fits on a full disk.
_NOTE_BYTES: Final = 32
_LOCK_NAME: Final = "LOCK"


@contextmanager
def kept_unused(directory: Path) -> Iterator[None]:
    """Keep a directory from being used meanwhile, without writing to it.

    Raises:
        StoreInUse: a process uses it.
    """
    try:
        handle = os.open(directory / _LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a copy without the file
        yield
        return
    except OSError as error:
        raise StoreError(f"cannot use {directory}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(directory, os.pread(handle, _NOTE_BYTES, 0)) from None
        yield
    finally:
        os.close(handle)


def _in_use(directory: Path, note: bytes) -> StoreInUse:
    holder = note.decode(errors="replace").strip() or "unknown"
    return StoreInUse(f"data directory {directory} is in use by process {holder}")


class DirectoryLock:
    """Locks a directory for this process. The file of a process that has ended does not lock it.

    ``left_by`` is the id of an earlier process that did not release the lock; empty for none.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _LOCK_NAME
        try:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cannot use {directory}: {error.strerror}") from None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            content = os.pread(self._handle, _NOTE_BYTES, 0)
            os.close(self._handle)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreError(f"cannot lock {directory}: {error.strerror}") from None
            raise _in_use(directory, content) from None
        note = self._note()
        self.left_by = note.strip() if len(note) == _NOTE_BYTES else ""
        try:
            self._write_note(str(os.getpid()))
        except OSError as error:
            os.close(self._handle)
            raise StoreError(f"cannot use {directory}: {error.strerror}") from None

    def _note(self) -> str:
        return os.pread(self._handle, _NOTE_BYTES, 0).decode(errors="replace")

    def _write_note(self, text: str) -> None:
        try:
            os.pwrite(self._handle, text.ljust(_NOTE_BYTES).encode(), 0)
        except OSError as error:
            if error.errno not in FULL:  # the note is only informative
                raise

    def release(self) -> None:
        """Release the directory."""
        if self._handle < 0:
            return
        with suppress(OSError):  # the next process then reports an unclean end
            self._write_note("")
        os.close(self._handle)
        self._handle = -1
