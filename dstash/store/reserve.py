"""Disk space that is kept for what must go on when the disk is full: a file that is given up then.

A number in the settings keeps the own puts of a peer away from the last bytes of a disk, but not
other programs, and not the other peers on that disk. Blocks that are allocated belong to this peer.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from dstash.limits import MIB

RESERVE_FILE: Final = "RESERVE"

#: A reserve takes at most this share of its disk.
_LARGEST_SHARE: Final = 8
#: It is made again only when this much more is free, so that it is not given up again at once.
_MARGIN_SHARE: Final = 8
_LEAST_MARGIN: Final = MIB


class Reserve:
    """The reserve of one store. Any thread may use it.

    Args:
        directory: of the store.
        wanted: bytes; the reserve is smaller on a small disk. With None it is left as it is.
    """

    def __init__(self, directory: Path, wanted: int | None) -> None:
        self._path = directory / RESERVE_FILE
        self._lock = threading.Lock()
        self._wanted = wanted
        self.size = min(wanted or 0, total_bytes(directory) // _LARGEST_SHARE)
        #: Bytes that are allocated now.
        self.held = 0 if wanted is None else self._allocated()

    def share(self, wanted: int) -> int:
        """Return how many bytes to keep free of this disk, for ``wanted`` ones of a large disk."""
        return wanted * self.size // self._wanted if self._wanted else wanted

    def make(self) -> str | None:
        """Allocate the reserve if it is not there and there is room for it.

        Returns:
            why it could not be allocated; None when it is there, or none is wanted.
        """
        with self._lock:
            if self.held >= self.size:
                return None
            margin = max(_LEAST_MARGIN, self.size // _MARGIN_SHARE)
            free = free_bytes(self._path.parent) + self.held
            if free < self.size + margin:
                return f"{free} bytes are free, {self.size + margin} are needed"
            try:
                self._allocate()
            except OSError as error:
                self._remove()
                return error.strerror or str(error)
            self.held = self.size
            return None

    def release(self) -> bool:
        """Free the reserve; whether there was any."""
        with self._lock:
            if not self.held:
                return False
            self._remove()
            return True

    def _allocate(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        handle = os.open(self._path, flags, 0o600)
        try:
            os.posix_fallocate(handle, 0, self.size)
            os.ftruncate(handle, self.size)  # it may have been larger
        finally:
            os.close(handle)

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self.held = 0

    def _allocated(self) -> int:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return 0
        if found.st_size <= self.size:
            return min(found.st_size, found.st_blocks * 512)
        self._path.unlink()  # the setting, or the disk, is smaller now
        return 0


def free_bytes(directory: Path) -> int:
    """Return how many bytes of a disk this user may still take."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


def total_bytes(directory: Path) -> int:
    """Return the size of a disk in bytes."""
    disk = os.statvfs(directory)
    return disk.f_blocks * disk.f_frsize
