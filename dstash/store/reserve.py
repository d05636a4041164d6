"""The reserve: a file that is deleted when the disk is full, to make room for deletes and repairs.

A limit in the settings keeps the puts of this peer away from the last bytes of the disk, but not
those of other programs and other peers. Allocated blocks belong to this peer.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from dstash.limits import MIB

RESERVE_FILE: Final = "RESERVE"

#: A reserve takes at most the disk size divided by this.
_DISK_SHARE: Final = 8
#: It is allocated again only when this much more is free (its size divided by the share, or at
#: least the minimum), so that it is not released again at once.
_MARGIN_SHARE: Final = 8
_MIN_MARGIN_BYTES: Final = MIB


class Reserve:
    """The reserve of one store. Any thread may use it.

    Args:
        directory: the directory of the store.
        wanted: bytes; the reserve is smaller on a small disk. None: leave the reserve as it is.
    """

    def __init__(self, directory: Path, wanted: int | None) -> None:
        self._path = directory / RESERVE_FILE
        self._lock = threading.Lock()
        self._wanted = wanted
        self.size = min(wanted or 0, total_bytes(directory) // _DISK_SHARE)
        #: Bytes allocated now.
        self.held = 0 if wanted is None else self._allocated()

    def share(self, wanted: int) -> int:
        """Return the bytes to keep free on this disk, given those of a large disk."""
        return wanted * self.size // self._wanted if self._wanted else wanted

    def make(self) -> str | None:
        """Allocate the reserve if it is missing and there is room for it.

        Returns:
            why it could not be allocated; None if it is allocated or not configured.
        """
        with self._lock:
            if self.held >= self.size:
                return None
            margin = max(_MIN_MARGIN_BYTES, self.size // _MARGIN_SHARE)
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
        """Free the reserve; return whether there was a reserve."""
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
        self._path.unlink()  # the setting or the disk has become smaller
        return 0


def free_bytes(directory: Path) -> int:
    """Return how many bytes of a disk are free for this user."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


def total_bytes(directory: Path) -> int:
    """Return the size of a disk in bytes."""
    disk = os.statvfs(directory)
    return disk.f_blocks * disk.f_frsize
