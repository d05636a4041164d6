"""The heartbeat of a peer: a small mapped file next to its store, which other processes look at.

A peer that lives writes the time into it several times a second, and the ticket of the serving mark
that holds (see ``mark.py``). Both are numbers of one machine word, so a reader never sees a part of
one. A peer takes the ticket away in the moment in which it stops serving a topology. A process that
was killed leaves an old time behind.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from dstash.errors import StoreError
from dstash.store.directory import DATA_FILE, FILE_MODE
from dstash.store.sharing.mark import Generation

HEARTBEAT_FILE: Final = "HEARTBEAT"
HEARTBEAT_BYTES: Final = 4096
#: Readers do not trust a heartbeat that is older (nanoseconds).
MAX_AGE_NS: Final = 1_500_000_000

#: The places of the words in the file.
MAGIC: Final = 0
TICKET: Final = 1
BEATEN_AT: Final = 2
DEVICE: Final = 3
INODE: Final = 4
PROCESS: Final = 5
BEGAN_AT: Final = 6
_WORDS: Final = 7

_MAGIC: Final = int.from_bytes(b"dstashH1", "big")
_WORD: Final = "Q"


def _clock() -> Callable[[], int]:
    """Return a clock that all processes of this boot of the machine share, in nanoseconds.

    Unlike ``CLOCK_MONOTONIC`` it counts while the machine is suspended.
    """
    number = getattr(time, "CLOCK_BOOTTIME", None)
    if number is None:
        return time.monotonic_ns
    return partial(time.clock_gettime_ns, number)


boot_time_ns: Final = _clock()


class Heartbeat:
    """The heartbeat that this process writes, for the store of a directory that it has locked.

    Args:
        directory: the data directory.

    Raises:
        StoreError: the file cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._map = _mapped(directory)
        except OSError as error:
            raise StoreError(f"cannot write {directory / HEARTBEAT_FILE}: {error}") from None
        self._words = memoryview(self._map).cast(_WORD)
        self._words[TICKET] = 0
        self._words[PROCESS] = os.getpid()
        self._words[BEGAN_AT] = boot_time_ns()
        self._words[MAGIC] = _MAGIC
        self.beat()

    def beat(self) -> None:
        """Note that the peer lives now."""
        self._words[BEATEN_AT] = boot_time_ns()

    def show(self, ticket: int, generation: Generation) -> None:
        """Show the ticket of the mark that holds; 0 lets no client read.

        Args:
            ticket: of the mark, which is in the store already.
            generation: the data file that has it.
        """
        self._words[TICKET] = 0
        if ticket:
            self._words[DEVICE], self._words[INODE] = generation
            self._words[TICKET] = ticket

    def close(self) -> None:
        """Let no client read any more."""
        self._words[TICKET] = self._words[BEATEN_AT] = 0
        self._words.release()
        self._map.close()


class SeenHeartbeat:
    """The heartbeat of a peer as another process sees it.

    ``words`` are its numbers; the constants of this module are their places.

    Args:
        directory: the data directory of the peer.

    Raises:
        OSError: the file cannot be read.
        StoreError: it is no heartbeat of this version.
    """

    def __init__(self, directory: Path) -> None:
        handle = os.open(directory / HEARTBEAT_FILE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(handle).st_size < HEARTBEAT_BYTES:
                raise StoreError(f"{directory / HEARTBEAT_FILE} is too short")
            self._map = mmap.mmap(handle, HEARTBEAT_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(handle)
        self.words = memoryview(self._map).cast(_WORD)
        if self.words[MAGIC] != _MAGIC:
            self.close()
            raise StoreError(f"{directory / HEARTBEAT_FILE} is of another version of dstash")

    @property
    def generation(self) -> Generation:
        """The data file that has the mark."""
        return Generation(self.words[DEVICE], self.words[INODE])

    @property
    def process(self) -> int:
        """The id of the process of the peer."""
        return self.words[PROCESS]

    def close(self) -> None:
        """Unmap the file."""
        self.words.release()
        self._map.close()


def silence(directory: Path) -> None:
    """Let no client read a store any more, if an earlier process on it left a heartbeat.

    It must be called before this process writes to the store.

    Raises:
        OSError: the file cannot be written.
    """
    if (directory / HEARTBEAT_FILE).exists():
        with _mapped(directory) as mapped, memoryview(mapped).cast(_WORD) as words:
            words[TICKET] = words[BEATEN_AT] = 0


def like_data_file(handle: int, directory: Path) -> None:
    """Give an open file the group, and the rights of it, that the data file of a store has.

    A process that may write the data file may read the store, which needs this file, too.
    """
    with suppress(OSError):  # no data file yet, or a group that this user is not in
        data = os.stat(directory / DATA_FILE)
        os.fchown(handle, -1, data.st_gid)
        os.fchmod(handle, data.st_mode & 0o666)


def _mapped(directory: Path) -> mmap.mmap:
    """Return the file, mapped; a full disk must not raise SIGBUS later, so it is allocated."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    handle = os.open(directory / HEARTBEAT_FILE, flags, FILE_MODE)
    try:
        like_data_file(handle, directory)
        os.posix_fallocate(handle, 0, HEARTBEAT_BYTES)
        return mmap.mmap(handle, HEARTBEAT_BYTES)
    finally:
        os.close(handle)
