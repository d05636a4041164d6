"""The store in LMDB: one environment per peer, one commit for all waiting writes.

LMDB gives readers a consistent snapshot that never waits for the writer, and atomic commits. What
it lacks is in ``environment/live.py``.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import lmdb
import structlog

from dstash import events
from dstash.errors import Busy, CorruptStore, DiskFull, ForeignStore, StoreError
from dstash.store.crashes import may_lack_writes, note_synced, note_unsynced
from dstash.store.directory import (
    DATA_FILE,
    FILE_MODE,
    check_mark,
    make_directory,
    remove_compacting,
    sync_names,
)
from dstash.store.disk_space import FULL
from dstash.store.environment.live import LiveEnvironment
from dstash.store.environment.opening import allocate_lock_file, open_environment
from dstash.store.environment.switch import Step, finish_switch
from dstash.store.environment.transactions import Mergeable, Recording, Walkable
from dstash.store.interface import (
    LACKING_MARK,
    DiskState,
    Identity,
    Merged,
    Snapshot,
    StoreStats,
    Write,
)
from dstash.store.lmdb_errors import translated
from dstash.store.lock import DirectoryLock
from dstash.store.merge import merge, raised
from dstash.store.offline.integrity import can_be_read
from dstash.store.online.compaction import Compacted, Progress, compact
from dstash.store.register.votes import Accepts
from dstash.store.reserve import free_bytes
from dstash.store.sharing.heartbeat import silence
from dstash.store.sharing.lock_file import drop_unfit_lock_file
from dstash.store.space import Space
from dstash.types import Durability
from dstash.version import MAX_STAMP, Stamp, Version, highest_version, newest_stamp

_log = structlog.get_logger("dstash.store")

#: The formats of a store. The second has registers or promises, which earlier versions of dstash
#: would overwrite: they refuse to open it. A store gets it with its first register or promise.
FORMAT: Final = 1
REGISTER_FORMAT: Final = 2
#: Exists while a store is created: a process that ends then leaves an empty data file behind.
_MAKING_FILE: Final = "MAKING"

#: What a commit writes in addition to a record, at most: copies of the pages on its path.
_BYTES_PER_RECORD: Final = 8192

_KEY_FORMAT: Final = b"format"
_KEY_STORE_ID: Final = b"store_id"
_KEY_CLUSTER: Final = b"cluster"
_KEY_PEER: Final = b"peer"
_KEY_HIGH_WATER: Final = b"high_water"
_MARK: Final = b"mark:"


class LmdbStore(LiveEnvironment):
    """The records of one peer, in one directory.

    Safe for one committing thread and any number of reading threads.

    Args:
        directory: created if missing; only one process may use it.
        durability: when commits are synced. With ``INTERVAL`` the caller must call ``sync``
            regularly.
        reserve: bytes of the disk to allocate for deletes when it is full; see ``tend``.

    Raises:
        StoreInUse: another process holds the directory.
        CorruptStore: LMDB cannot open it, its data file is empty, or LMDB failed to read it
            earlier.
        StoreError: it cannot be created, read or written.
    """

    def __init__(
        self,
        directory: Path,
        durability: Durability = Durability.SYNC,
        reserve: int | None = None,
    ) -> None:
        super().__init__(directory, syncs_commits=durability is Durability.SYNC)
        self._merged_at = self.synced_in = 0.0
        self._keeps_note = False
        self._compacting = threading.Lock()  # held by a compaction
        make_directory(directory)
        self._lock = DirectoryLock(directory)
        try:
            with translated(directory):
                finish_switch(directory)
            remove_compacting(directory)
            check_mark(directory)
            self._space = Space(directory, reserve, self.unused_bytes)
            self._spending(lambda: silence(directory))
            drop_unfit_lock_file(directory)
            self._spending(lambda: allocate_lock_file(directory))
            self.may_lack_writes = self._may_lack_writes()
            self._open()
            self._note_durability()
            self._file = os.stat(directory / DATA_FILE)
            if reserve is not None:
                self._space.tend()
        except BaseException:
            self._lock.release()
            raise

    def _spending(self, act: Callable[[], None]) -> None:
        """Write a small file; if the disk is full, on the reserve."""
        with translated(self.directory):
            try:
                act()
            except OSError as error:
                if error.errno not in FULL or not self._space.refused(may_spend=True):
                    raise
                act()

    def _may_lack_writes(self) -> bool:
        """Whether the machine stopped before all commits were synced.

        The kernel may then have written the root of a tree and not its leaves.

        Raises:
            CorruptStore: so a part of the store cannot be read.
        """
        if not may_lack_writes(self.directory):
            return False
        if not can_be_read(self.directory):
            raise CorruptStore(
                f"{self.directory / DATA_FILE} cannot be read: the machine stopped before all "
                "commits were synced"
            )
        return True

    def _note_durability(self) -> None:
        """Note on disk whether this process syncs each commit, and what an earlier one lost."""
        if self.may_lack_writes:
            try:
                self.mark(LACKING_MARK, b"1")
            except DiskFull:
                self._keeps_note = True  # which says the same to the next process
                return
        self.may_lack_writes = bool(self.marked(LACKING_MARK))
        if self.syncs_commits:
            self.sync()
            self._spending(lambda: note_synced(self.directory))
        else:
            self._spending(lambda: note_unsynced(self.directory))

    def _open(self) -> None:
        making = self.directory / _MAKING_FILE
        with translated(self.directory):
            if not (self.directory / DATA_FILE).exists():
                making.touch(FILE_MODE)
            is_new = making.exists()
            opened = open_environment(self.directory, syncs=self.syncs_commits)
            self._env, self._meta, self._records, self._promises = opened
            self._read_meta(is_new)
            making.unlink(missing_ok=True)
            if is_new:
                sync_names(self.directory)

    def _read_meta(self, is_new: bool) -> None:
        with self._env.begin(self._meta, write=True) as transaction:
            found = transaction.get(_KEY_FORMAT)
            if found is None:
                if not is_new:
                    raise CorruptStore(
                        f"{self.directory / DATA_FILE} is empty or not a dstash store; "
                        "move it away to start with an empty one"
                    )
                transaction.put(_KEY_FORMAT, str(FORMAT).encode())
                transaction.put(_KEY_STORE_ID, uuid.uuid4().hex.encode())
            elif int(found) not in (FORMAT, REGISTER_FORMAT):
                raise StoreError(
                    f"{self.directory} has store format {int(found)}; "
                    f"this version reads {FORMAT} and {REGISTER_FORMAT}"
                )
            self._format = FORMAT if found is None else int(found)
            self.store_id: str = transaction.get(_KEY_STORE_ID, b"").decode()
            self._identity = self._read_identity(transaction)
            self._high_water = int.from_bytes(transaction.get(_KEY_HIGH_WATER, b"\0"), "big")
            self._ceiling = highest_version(self._high_water)
            self._newest = self._high_water

    def _read_identity(self, transaction: Any) -> Identity | None:
        cluster, peer = transaction.get(_KEY_CLUSTER), transaction.get(_KEY_PEER)
        if cluster is None or peer is None:
            return None
        return Identity(cluster.decode(), peer.decode(), self.store_id)

    @property
    def identity(self) -> Identity | None:
        """The owner of the store; None until it has joined a cluster."""
        return self._identity

    @property
    def left_by(self) -> str:
        """The id of an earlier process that did not close the store; empty for none."""
        return self._lock.left_by

    @property
    def high_water(self) -> Stamp:
        """A stamp that grows with every commit, and is not below any that was committed."""
        return self._high_water

    @property
    def newest(self) -> Stamp:
        """A stamp that no stored record exceeds, except registers."""
        return self._newest

    def adopt(self, identity: Identity) -> None:
        """Set the owner of the store."""
        if self._identity is not None:
            self._check_same(identity)
            return

        def write(transaction: Any) -> None:
            transaction.put(_KEY_CLUSTER, identity.cluster.encode(), db=self._meta)
            transaction.put(_KEY_PEER, identity.peer.encode(), db=self._meta)

        self._write(write)
        self.sync()
        self._identity = identity._replace(store_id=self.store_id)

    def mark(self, name: bytes, content: bytes) -> None:
        """Store a mark durably."""
        self._write(lambda transaction: transaction.put(_MARK + name, content, db=self._meta))
        if not self.syncs_commits:
            self.sync()

    def marked(self, name: bytes) -> bytes | None:
        """Return the content of a mark; None if there is none."""
        with self._growing, translated(self.directory), self._env.begin(self._meta) as transaction:
            kept: bytes | None = transaction.get(_MARK + name)
            return kept

    def _check_same(self, identity: Identity) -> None:
        owner = self._identity
        if owner is not None and (owner.cluster, owner.peer) != (identity.cluster, identity.peer):
            raise ForeignStore(
                f"data directory {self.directory} belongs to peer {owner.peer!r} of cluster "
                f"{owner.cluster!r}, not to peer {identity.peer!r} of cluster {identity.cluster!r}"
            )

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Return a consistent view. Use it for milliseconds: it blocks growth and pins pages."""
        self._check_process()
        with (
            self._growing,
            self._translated(),
            self._env.begin(self._records) as transaction,
        ):
            yield Walkable(transaction, self._records)

    def get(self, storage_key: bytes) -> bytes | None:
        """Return the record of a key; None if there is none."""
        self._check_process()
        try:
            with self._growing, self._env.begin(self._records) as transaction:
                record: bytes | None = transaction.get(storage_key)
                return record
        except lmdb.Error:
            with self.snapshot() as snapshot:  # which reports the error
                return snapshot.get(storage_key)

    def promises_between(self, begin: bytes, end: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``most`` promises of a range of storage keys, as stored."""
        with (
            self._growing,
            self._translated(),
            self._env.begin(self._promises) as transaction,
        ):
            return list(islice(Walkable(transaction, self._promises).walk(begin, end), most))

    def commit(self, writes: Sequence[Write]) -> list[Merged]:
        """Merge writes in one transaction."""

        def work(transaction: Any) -> tuple[list[Merged], Version, Stamp]:
            with transaction.cursor(self._records) as cursor:
                mergeable = self._mergeable(transaction, cursor)
                merged, ceiling = merge(mergeable, writes, self._ceiling)
            high_water = raised(self._high_water, writes, merged)
            if self._format != REGISTER_FORMAT and any(item.registers for item in merged):
                transaction.put(_KEY_FORMAT, str(REGISTER_FORMAT).encode(), db=self._meta)
            if high_water != self._high_water:
                transaction.put(_KEY_HIGH_WATER, high_water.to_bytes(8, "big"), db=self._meta)
            for name, content in (mark for write in writes for mark in write.marks):
                transaction.put(_MARK + name, content, db=self._meta)
            self._merged_at = time.perf_counter()
            return merged, ceiling, high_water

        may_spend = all(write.may_spend_reserve for write in writes)
        merged, self._ceiling, self._high_water = self._write(
            work, lambda: _needed(writes), may_spend=may_spend
        )
        self._newest = max([self._newest, *(write.newest for write in writes)])
        self.synced_in = time.perf_counter() - self._merged_at
        if any(item.registers for item in merged):
            self._format = REGISTER_FORMAT
        return merged

    def put_newest(self, storage_key: bytes, record: bytes, version: Version) -> bool:
        """Store one record that is stamped after all others."""
        if version <= self._ceiling:
            return False
        newest = newest_stamp(version)
        high_water = min(MAX_STAMP, max(self._high_water + 1, newest))

        def work(transaction: Any) -> None:
            if self._journal is not None:
                self._noted[0].append(storage_key)
            transaction.put(storage_key, record)
            transaction.put(_KEY_HIGH_WATER, high_water.to_bytes(8, "big"), db=self._meta)
            self._merged_at = time.perf_counter()

        self._write(work, lambda: len(record) + _BYTES_PER_RECORD, may_spend=False)
        self._ceiling, self._high_water = version, high_water
        self._newest = max(self._newest, newest)
        self.synced_in = time.perf_counter() - self._merged_at
        return True

    def _mergeable(self, transaction: Any, cursor: Any) -> Mergeable:
        if self._journal is None:
            return Mergeable(transaction, cursor, self._promises)
        return Recording(transaction, cursor, self._promises, *self._noted)

    def compact(
        self,
        progress: Progress | None = None,
        cancelled: threading.Event | None = None,
        on_step: Callable[[Step], None] = lambda step: None,
    ) -> Compacted:
        """Give the space of free and half-full pages back to the disk, while the store is used.

        Args:
            progress: is kept current meanwhile.
            cancelled: ends the compaction when it is set.
            on_step: called at the steps of the compaction.

        Raises:
            Busy: a compaction runs already.
            CorruptStore: LMDB cannot read the store.
            StoreFailed: the disk failed; the store accepts no more writes.
            StoreError: it was cancelled, the disk lacks room, or writes come too fast; the store
                is as it was.
        """
        self._check_process()
        if not self._compacting.acquire(blocking=False):
            raise Busy(f"a compaction of {self.directory} runs already")
        try:
            return compact(self, progress or Progress(), cancelled or threading.Event(), on_step)
        finally:
            self._compacting.release()

    def has_room(self, reserve: int) -> bool:
        """Whether more than ``reserve`` bytes are free, on the disk or in the data file."""
        return self._space.has_room(reserve)

    def disk_state(self) -> DiskState:
        """Return how full the disk is."""
        return self._space.state

    def tend(self) -> None:
        """Check the data file and the reserve; call it about every second.

        The store accepts no more writes if its data file was truncated, moved or removed. The
        reserve of the disk is allocated again when there is room for it.
        """
        if self._failed is None and (harm := self._harm()):
            self._fail(harm)
            _log.error(events.STORE_CLOSED, why=harm)
        if self._failed is None:
            self._space.tend()

    def stats(self) -> StoreStats:
        """Return sizes."""
        with self._growing, self._env.begin(self._records) as transaction:
            tree = transaction.stat(self._records)
            info, page = self._env.info(), self._env.stat()["psize"]
        pages = {
            "branch": tree["branch_pages"],
            "leaf": tree["leaf_pages"],
            "overflow": tree["overflow_pages"],
        }
        pages["other"] = info["last_pgno"] + 1 - sum(pages.values())
        return StoreStats(
            records=tree["entries"],
            used_bytes=(info["last_pgno"] + 1) * page,
            map_bytes=info["map_size"],
            free_bytes=free_bytes(self.directory),
            pages=pages,
            reserved_bytes=self._space.reserved,
            unused_bytes=self.unused_bytes(),
        )

    def close(self) -> None:
        """Sync and close the store, and release its directory."""
        with self._writing:
            try:
                if not self._failed:
                    self.sync()
                    if not self._keeps_note:
                        with translated(self.directory):
                            note_synced(self.directory)
            finally:
                with self._growing:
                    self._env.close()
                self._lock.release()


def _needed(writes: Sequence[Write]) -> int:
    """Return how many bytes writes may take on disk, at most."""
    total = 0
    for write in writes:
        total += sum(len(content) for _, content in (*write.entries, *write.marks))
        total += sum(len(replacement or b"") for _, replacement in write.replacements)
        total += _BYTES_PER_RECORD * (
            len(write.entries) + len(write.replacements) + len(write.drops)
        )
        if isinstance(write.votes, Accepts):
            total += sum(len(record) + 2 * _BYTES_PER_RECORD for _, record in write.votes.entries)
        elif write.votes is not None:
            total += _BYTES_PER_RECORD * len(write.votes.keys)
    return total
