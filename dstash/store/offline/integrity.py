"""Reading a store without changing it: an integrity check, and the records of a copy.

LMDB reports some corrupt pages as errors; others fail an assertion, which aborts the process.
``python -m dstash.store.offline.integrity DIR`` walks every tree; the caller checks how it ended.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import lmdb

from dstash.errors import CorruptStore, StoreError
from dstash.store.directory import DATA_FILE, check_mark
from dstash.store.lmdb_errors import translated
from dstash.store.lock import kept_unused

#: How the process ends at a corrupt page: with this status, or by an assertion or a fault.
_UNREADABLE: Final = 3
_FATAL: Final = (-signal.SIGABRT, -signal.SIGBUS, -signal.SIGSEGV)


def can_be_read(directory: Path) -> bool:
    """Whether all pages of the store in a directory can be read. It reads all of them.

    Raises:
        StoreError: the result is unknown, because the process ended for another reason.
    """
    command = [sys.executable, "-m", "dstash.store.offline.integrity", os.fspath(directory)]
    done = subprocess.run(  # noqa: S603  # our own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode not in (0, _UNREADABLE, *_FATAL):
        raise StoreError(
            f"cannot check whether {directory} can be read: python -m "
            f"dstash.store.offline.integrity ended with status {done.returncode}"
        )
    return done.returncode == 0


@contextmanager
def reading(directory: Path) -> Iterator[ReadOnlyStore]:
    """Open the store of a stopped peer, or a copy of it, without changing anything.

    Raises:
        StoreInUse: a process uses the directory.
        CorruptStore: LMDB cannot read it.
        StoreError: it cannot be read, or is not a store.
    """
    with kept_unused(directory):
        check_mark(directory)
        store = ReadOnlyStore(directory)
        try:
            yield store
        finally:
            store.close()


class ReadOnlyStore:
    """The records of a store that no process changes meanwhile; see ``reading``."""

    def __init__(self, directory: Path) -> None:
        if not can_be_read(directory):
            raise CorruptStore(f"{directory / DATA_FILE} cannot be read by LMDB")
        with translated(directory):
            self._environment = lmdb.open(
                os.fspath(directory), readonly=True, lock=False, create=False, max_dbs=8
            )
            try:
                self._records = self._environment.open_db(b"records", create=False)
            except lmdb.NotFoundError:
                self._environment.close()
                raise StoreError(f"{directory / DATA_FILE} is not a dstash store") from None

    @contextmanager
    def snapshot(self) -> Iterator[_Walk]:
        """Return a consistent view for reading."""
        with self._environment.begin(self._records) as transaction:
            yield _Walk(transaction)

    def close(self) -> None:
        """Close the store."""
        self._environment.close()


class _Walk:
    """A read transaction: the part of ``Snapshot`` that a scrub uses."""

    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction

    def walk(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (storage key, record) with ``begin <= storage key < end``, in order."""
        with self._transaction.cursor() as cursor:
            if cursor.set_range(begin):
                yield from takewhile((end,).__gt__, cursor.iternext(keys=True, values=True))


def _read(directory: str) -> None:
    with lmdb.open(directory, readonly=True, lock=False, create=False, max_dbs=8) as environment:
        with environment.begin() as transaction, transaction.cursor() as cursor:
            names = list(cursor.iternext(keys=True, values=False))
        for name in names:
            database = environment.open_db(name, create=False)
            with environment.begin(database) as transaction, transaction.cursor() as cursor:
                for _ in cursor.iternext(keys=True, values=True):
                    continue


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort is a result here
    try:
        _read(sys.argv[1])
    except lmdb.Error:
        sys.exit(_UNREADABLE)
