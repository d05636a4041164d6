"""Lock files: an flock that the kernel drops when the process dies, whatever it died of.

The files themselves stay, because one that is removed while another process opens it would be
locked twice. A file that nobody has locked means nothing.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: How long a lock may be in the way before it counts as held: those who test it hold it shared
#: for some microseconds, and a dying process lets go of its own some milliseconds late.
PATIENCE: Final = 0.5
_POLL: Final = 0.01
#: What is read of a file: many times what a holder writes. Of a MiB the system would be asked for
#: the pages each time, which takes longer than all the rest.
_MOST_BYTES: Final = 1 << 16


class LockFile:
    """A lock file held by this process, with a few bytes in it that others may read."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    def take(
        cls, path: Path | str, patience: float = 0.0, directory: int | None = None
    ) -> LockFile | None:
        """Lock a file, made when missing; None when it is held for ``patience`` seconds more.

        Args:
            directory: an open directory that a relative path begins in.

        Raises:
            OSError: it cannot be opened or locked.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        handle = os.open(path, flags, 0o600, dir_fd=directory)
        try:
            if _retry(lambda: _try(handle, fcntl.LOCK_EX), patience):
                return cls(handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None

    def write(self, content: bytes) -> None:
        """Replace the content. A reader may meet the first part of it, never a mixture."""
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, content, 0)

    def is_at(self, path: Path) -> bool:
        """Whether the file at ``path`` is this one, and not another or none."""
        try:
            there = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        mine = os.fstat(self._handle)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def release(self) -> None:
        """Let go. The file stays."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def read_if_held(path: Path | str) -> bytes | None:
    """Return what the holder of a lock file wrote; None when nobody holds it."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _try(handle, fcntl.LOCK_SH):
            return None  # closing lets go of the shared lock
        return os.pread(handle, _MOST_BYTES, 0)
    finally:
        os.close(handle)


def _try(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _retry(attempt: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not attempt():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True
