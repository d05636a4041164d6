"""Compaction: copies the trees of a store to a new file, with full pages and no free ones.

Random writes leave the leaf pages of a tree half full, as in every B-tree, and deleted data leaves
free pages behind, which LMDB uses again but never gives back to the disk. A tree that is written in
the order of its keys has full pages.

The new file is written next to the old one and takes its place once it is synced, so a process that
ends meanwhile, or a machine, leaves the old store or the new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb

from dstash.errors import CorruptStore, StoreError
from dstash.store.directory import (
    COMPACTING,
    DATA_FILE,
    check_mark,
    remove_compacting,
)
from dstash.store.disk_space import map_size_for
from dstash.store.environment.copy import Copy, count_entries
from dstash.store.environment.opening import MAX_DATABASES, allocate_lock_file
from dstash.store.environment.switch import finish_switch, prepare_switch, switch
from dstash.store.lmdb_errors import translated
from dstash.store.lock import DirectoryLock
from dstash.store.offline.integrity import can_be_read
from dstash.store.reserve import free_bytes

#: Databases of a store: these at least, and those of its version.
_TREES: Final = frozenset({b"meta", b"records"})
_SLICE_RECORDS: Final = 10_000
#: What the new file needs beyond the pages in use: branch pages that are not shared.
_MARGIN_BYTES: Final = 1 << 20


class Compacted(NamedTuple):
    """The result of a compaction. ``before`` and ``after`` are bytes of the data file."""

    records: int
    before: int
    after: int


def compact(directory: Path, on_progress: Callable[[int], None] = lambda done: None) -> Compacted:
    """Copy the store of a stopped peer to a new file without unused space.

    Args:
        directory: the data directory of the peer.
        on_progress: called with the number of records written so far.

    Raises:
        StoreInUse: a process uses the directory.
        CorruptStore: LMDB cannot read the store.
        StoreError: there is no store, too little room, or the directory cannot be written.
    """
    if not (directory / DATA_FILE).exists():
        raise StoreError(f"{directory} is not a data directory: it has no {DATA_FILE}")
    lock = DirectoryLock(directory)
    try:
        with translated(directory):
            finish_switch(directory)
        check_mark(directory)
        if not can_be_read(directory):
            raise CorruptStore(f"{directory / DATA_FILE} cannot be read by LMDB")
        with translated(directory):
            return _compact(directory, on_progress)
    finally:
        lock.release()


def _compact(directory: Path, on_progress: Callable[[int], None]) -> Compacted:
    file, made = directory / DATA_FILE, directory / COMPACTING
    before = file.stat().st_size
    remove_compacting(directory)
    source = lmdb.open(
        os.fspath(directory), readonly=True, lock=False, create=False, max_dbs=MAX_DATABASES
    )
    try:
        trees = _trees(directory, source)
        _check_room(directory, source, trees)
        records = _copy(source, trees, Copy(made, trees, map_size_for(file)), on_progress)
        allocate_lock_file(made)
        prepare_switch(directory)
        switch(directory)
    except BaseException:
        remove_compacting(directory)
        raise
    finally:
        source.close()
    return Compacted(records, before, file.stat().st_size)


def _trees(directory: Path, source: Any) -> dict[bytes, Any]:
    """Return all databases by name, those of other versions among them."""
    with source.begin() as transaction, transaction.cursor() as cursor:
        names = [bytes(name) for name in cursor.iternext(keys=True, values=False)]
    if not _TREES.issubset(names):
        raise StoreError(f"{directory / DATA_FILE} is not a dstash store")
    return {name: source.open_db(name, create=False) for name in names}


def _check_room(directory: Path, source: Any, trees: Mapping[bytes, Any]) -> None:
    needed = _MARGIN_BYTES
    with source.begin() as transaction:
        for database in trees.values():
            tree = transaction.stat(database)
            pages = tree["branch_pages"] + tree["leaf_pages"] + tree["overflow_pages"]
            needed += pages * tree["psize"]
    free = free_bytes(directory)
    if free < needed:
        raise StoreError(
            f"compacting {directory} needs {needed} bytes of free space, and {free} are free; "
            "nothing was changed"
        )


def _copy(
    source: Any, trees: Mapping[bytes, Any], copy: Copy, on_progress: Callable[[int], None]
) -> int:
    """Copy all trees in the order of their keys; return the number of records."""
    try:
        with source.begin() as reading:
            counts = count_entries(reading, trees)
            for name, tree in trees.items():
                done = 0
                for part in _slices(reading, tree):
                    copy.append(name, part)
                    if name == b"records":
                        done += len(part)
                        on_progress(done)
        if copy.counts() != counts:
            raise CorruptStore(f"the store counts {counts} entries, but {copy.counts()} were read")
        copy.sync()
    finally:
        copy.close()
    return counts[b"records"]


def _slices(transaction: Any, tree: Any) -> Iterator[list[tuple[bytes, bytes]]]:
    with transaction.cursor(tree) as cursor:
        entries = iter(cursor)
        while part := list(islice(entries, _SLICE_RECORDS)):
            yield part
