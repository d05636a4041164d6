"""One process a directory: an flock that the kernel drops when the process dies."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from dstash.errors import StoreError, StoreInUse


class DirectoryLock:
    """Holds a directory for this process. A file left over by a dead process does not count."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "LOCK"
        try:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cannot use {directory}: {error.strerror}") from None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._handle, 32, 0).decode(errors="replace").strip()
            os.close(self._handle)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreError(f"cannot lock {directory}: {error.strerror}") from None
            raise StoreInUse(
                f"data directory {directory} is in use by process {holder or 'unknown'}"
            ) from None
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, str(os.getpid()).encode(), 0)
        except OSError as error:
            self.release()
            raise StoreError(f"cannot use {directory}: {error.strerror}") from None

    def release(self) -> None:
        """Let go of the directory."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
