"""The opening of an LMDB environment, with the options and the checks of a store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb

from dstash.errors import CorruptStore, StoreError
from dstash.store.crashes import last_fault
from dstash.store.directory import DATA_FILE, FILE_MODE, LOCK_FILE
from dstash.store.disk_space import map_size_for
from dstash.store.offline.integrity import can_be_read
from dstash.store.sharing.heartbeat import like_data_file

MAX_DATABASES: Final = 8
#: How many read transactions may be open at the same time, in all processes: each thread that reads
#: next to the peer needs one.
_MAX_READERS: Final = 1022
#: The size of LMDB's lock file for this number of readers.
LOCK_FILE_BYTES: Final = 65_536


class Opened(NamedTuple):
    """An open environment and the databases of a store in it."""

    environment: Any
    meta: Any
    records: Any
    promises: Any


def open_environment(directory: Path, *, syncs: bool) -> Opened:
    """Open the environment in a directory; LMDB creates its files if they are missing.

    Args:
        directory: has the data file and LMDB's lock file.
        syncs: whether each commit is synced.

    Raises:
        CorruptStore: the data file is truncated, or cannot be read.
    """
    environment = lmdb.open(
        os.fspath(directory),
        map_size=map_size_for(directory / DATA_FILE),
        mode=FILE_MODE,
        max_dbs=MAX_DATABASES,
        max_readers=_MAX_READERS,
        sync=syncs,
        metasync=True,
        readahead=False,  # records are hashed: the next page is rarely needed next
        writemap=False,  # with it a full disk raises SIGBUS instead of an error
        lock=True,
    )
    _check_data_file(directory, environment)
    environment.reader_check()
    databases = [environment.open_db(name) for name in (b"meta", b"records", b"promises")]
    return Opened(environment, *databases)


def allocate_lock_file(directory: Path) -> None:
    """Allocate the blocks of LMDB's lock file, to which readers write through a map.

    Without an allocated block, such a write raises SIGBUS when the disk is full. Call it before the
    environment is opened: to close any handle of the file ends the locks that LMDB has on it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    handle = os.open(directory / LOCK_FILE, flags, FILE_MODE)
    try:
        like_data_file(handle, directory)
        os.posix_fallocate(handle, 0, max(LOCK_FILE_BYTES, os.fstat(handle).st_size))
    finally:
        os.close(handle)


def _check_data_file(directory: Path, environment: Any) -> None:
    """Check a data file that is too short, or that ended the last process.

    Access to a page beyond the end of the file raises SIGBUS. A short file alone is no proof of
    corruption: pages that the same commit allocated and freed are never written. So the file is
    extended to its full length and then read: a page of zeros is not part of a tree.

    Raises:
        CorruptStore: the file cannot be read.
    """
    file = directory / DATA_FILE
    used = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size, fault = file.stat().st_size, last_fault(directory)
    if size >= used and not fault:
        return
    text = f"{file} was truncated: it has {size} of {used} bytes"
    if size >= used:
        text = f"{file} cannot be read: it ended the last process of this peer ({fault})"
    os.truncate(file, max(size, used))
    try:
        if not can_be_read(directory):
            raise CorruptStore(text)
    except StoreError:
        environment.close()
        os.truncate(file, size)
        raise
