"""Lock files: flocks, which the kernel releases when their process ends for any reason.

The files are never removed: a file that is removed while another process opens it could be locked
twice. A file without a lock has no meaning.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: How long a lock must be unavailable before it counts as held: a test holds it shared for some
#: microseconds, and an ending process releases its own some milliseconds late.
LOCK_TIMEOUT_S: Final = 0.5
_POLL_INTERVAL_S: Final = 0.01
#: The read size, many times what a holder writes. For a size of 1 MiB the system would allocate
#: the pages for each read, which takes longer than the rest.
_MAX_READ_BYTES: Final = 1 << 16


class LockFile:
    """A lock file held by this process, with a small content that other processes can read."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        own = os.fstat(handle)
        #: Device and inode of the file.
        self._place = own.st_dev, own.st_ino

    @classmethod
    def take(
        cls, path: Path | str, timeout: float = 0.0, directory: int | None = None
    ) -> LockFile | None:
        """Lock a file, created if missing; None if it stays locked for ``timeout`` seconds.

        Args:
            path: the file.
            timeout: seconds.
            directory: an open directory for a relative path.

        Raises:
            OSError: the file cannot be opened or locked.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        handle = os.open(path, flags, 0o600, dir_fd=directory)
        try:
            if _retry(lambda: _try(handle, fcntl.LOCK_EX), timeout):
                return cls(handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None

    def write(self, content: bytes) -> None:
        """Replace the content. A reader may get a prefix of it, never a mixture."""
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, content, 0)

    def is_at(self, path: Path | str) -> bool:
        """Whether the file at ``path`` is this file."""
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (found.st_dev, found.st_ino) == self._place

    def release(self) -> None:
        """Release the lock. The file stays."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def read_if_held(path: Path | str) -> bytes | None:
    """Return the content of a lock file; None if no process holds its lock."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _try(handle, fcntl.LOCK_SH):
            return None  # closing releases the shared lock
        return os.pread(handle, _MAX_READ_BYTES, 0)
    finally:
        os.close(handle)


def _try(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _retry(attempt: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not attempt():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True
