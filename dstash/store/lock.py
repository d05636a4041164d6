"""One process a directory: an flock that the kernel drops when the process dies."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from dstash.errors import StoreError, StoreInUse
from dstash.store.disk_space import FULL

#: Bytes of the note that says who holds the directory: always the same, so that a full disk has
#: room for it.
_NOTE_BYTES: Final = 32


class DirectoryLock:
    """Holds a directory for this process. A file left over by a dead process does not count.

    ``left_by`` is the id of a process that held it before and did not release it; empty for none.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "LOCK"
        try:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cannot use {directory}: {error.strerror}") from None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._note().strip()
            os.close(self._handle)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreError(f"cannot lock {directory}: {error.strerror}") from None
            raise StoreInUse(
                f"data directory {directory} is in use by process {holder or 'unknown'}"
            ) from None
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
            if error.errno not in FULL:  # what counts is the lock; the note is for people
                raise

    def release(self) -> None:
        """Let go of the directory."""
        if self._handle < 0:
            return
        with suppress(OSError):  # the next process then says that this one did not end cleanly
            self._write_note("")
        os.close(self._handle)
        self._handle = -1
