"""The copy of a store that a compaction makes, until it is the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb

from dstash.errors import CorruptStore
from dstash.limits import MIB
from dstash.store.directory import DATA_FILE, DIRECTORY_MODE, FILE_MODE
from dstash.store.disk_space import grown, lacks_room
from dstash.store.environment.opening import (
    MAX_DATABASES,
    Opened,
    allocate_lock_file,
    open_environment,
)
from dstash.store.lmdb_errors import translated
from dstash.store.sharing.heartbeat import like_data_file

#: Bytes that are written before they are synced: a sync of more would delay those of commits.
_UNSYNCED_BYTES: Final = 32 * MIB
#: What a transaction writes in addition to its content, at most.
_BYTES_PER_WRITE: Final = MIB // 4


class Copy:
    """A new data file. Used by one thread.

    Args:
        directory: is created, in the directory of the store.
        names: of the databases.
        map_size: that of the store.

    Raises (all methods):
        DiskFull: the disk is full.
        StoreError: the file cannot be written.
    """

    def __init__(self, directory: Path, names: Iterable[bytes], map_size: int) -> None:
        self._directory = directory
        self._names = list(names)
        self._unsynced = 0
        directory.mkdir(DIRECTORY_MODE)
        with self._translated():
            self._environment = lmdb.open(
                os.fspath(directory),
                map_size=map_size,
                mode=FILE_MODE,
                max_dbs=MAX_DATABASES,
                sync=False,  # it is synced in larger pieces
                readahead=False,
                lock=False,  # no other process opens it yet
            )
            _give_rights_of_store(directory)
            self._open_databases()

    def append(self, name: bytes, part: Sequence[tuple[bytes, bytes]]) -> None:
        """Store pairs whose keys are above all keys of the database, in order.

        Raises:
            CorruptStore: the keys are not in order.
        """
        database = self._databases[name]

        def work(transaction: Any) -> None:
            with transaction.cursor(database) as cursor:
                _, added = cursor.putmulti(part, append=True)
            if added < len(part):  # LMDB leaves out the others
                raise CorruptStore(f"the keys of database {name.decode()!r} are not in order")

        self._write(work, part)

    def change(self, changes: Iterable[tuple[bytes, bytes, bytes | None]]) -> None:
        """Store (name of the database, key, value) triples; None removes the key."""
        known = list(changes)

        def work(transaction: Any) -> None:
            for name, key, value in known:
                if value is None:
                    transaction.delete(key, db=self._databases[name])
                else:
                    transaction.put(key, value, db=self._databases[name])

        self._write(work, [(key, value or b"") for _, key, value in known])

    def counts(self) -> dict[bytes, int]:
        """Return the number of entries of each database."""
        with self._environment.begin() as transaction:
            return count_entries(transaction, self._databases)

    def sync(self) -> None:
        """Sync what was written."""
        with self._translated():
            self._environment.sync(True)
        self._unsynced = 0

    def open_as_store(self, *, syncs: bool) -> Opened:
        """Open it again, with a lock file and with the options of a store.

        Args:
            syncs: whether each transaction is synced from now on.
        """
        self.sync()
        self._environment.close()
        with self._translated():
            allocate_lock_file(self._directory)
            opened = open_environment(self._directory, syncs=syncs)
            self._environment = opened.environment
            self._open_databases()
        return opened

    def close(self) -> None:
        """Close it."""
        self._environment.close()

    def _open_databases(self) -> None:
        self._databases = {name: self._environment.open_db(name) for name in self._names}

    def _write(self, work: Callable[[Any], None], content: Sequence[tuple[bytes, bytes]]) -> None:
        size = sum(len(key) + len(value) for key, value in content)
        while True:
            try:
                with (
                    self._translated(size),
                    self._environment.begin(write=True) as transaction,
                ):
                    work(transaction)
                break
            except lmdb.MapFullError:
                self._environment.set_mapsize(grown(self._environment.info()["map_size"]))
        self._unsynced += size
        if self._unsynced > _UNSYNCED_BYTES:
            self.sync()

    def _translated(self, size: int = 0) -> Any:
        return translated(
            self._directory,
            is_full=lambda: lacks_room(self._directory, size + _BYTES_PER_WRITE),
        )


def count_entries(transaction: Any, databases: Mapping[bytes, Any]) -> dict[bytes, int]:
    """Return the number of entries of each database, by name."""
    return {name: transaction.stat(db)["entries"] for name, db in databases.items()}


def _give_rights_of_store(directory: Path) -> None:
    """Give the new data file the group of the old one, and the rights of that group."""
    handle = os.open(directory / DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
    try:
        like_data_file(handle, directory.parent)
    finally:
        os.close(handle)
