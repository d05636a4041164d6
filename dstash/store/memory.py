"""The dictionary twin: the behaviour of a store, in a dictionary.

Model tests compare the LMDB store with it. The simulation runs peers on it, and drops unsynced data
on a simulated crash.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dstash.errors import ForeignStore
from dstash.store.interface import DiskState, Identity, Merged, Snapshot, StoreStats, Write
from dstash.store.merge import merge, raised
from dstash.version import ZERO, Stamp, Version, newest_stamp


class TwinStore:
    """Records in memory, with the interface of ``Store``."""

    def __init__(self, store_id: str = "twin") -> None:
        self.records: dict[bytes, bytes] = {}
        #: Promises for registers, by storage key, as stored.
        self.promises: dict[bytes, bytes] = {}
        self.store_id = store_id
        self.identity: Identity | None = None
        self.high_water: Stamp = 0
        self.newest: Stamp = 0
        self.marks: dict[bytes, bytes] = {}
        self.synced_in = 0.0
        self.may_lack_writes = False
        self._condemned: str | None = None
        self._ceiling: Version = ZERO

    def adopt(self, identity: Identity) -> None:
        """Set the owner of the store."""
        owner = self.identity
        if owner is not None and (owner.cluster, owner.peer) != (identity.cluster, identity.peer):
            raise ForeignStore(f"twin belongs to {owner}, not to {identity}")
        self.identity = identity._replace(store_id=self.store_id)

    def mark(self, name: bytes, content: bytes) -> None:
        """Store a mark."""
        self.marks[name] = content

    def marked(self, name: bytes) -> bytes | None:
        """Return the content of a mark; None if there is none."""
        return self.marks.get(name)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Return a view of the records as they are now."""
        yield _TwinSnapshot(dict(self.records))

    def get(self, storage_key: bytes) -> bytes | None:
        """Return the record of a key; None if there is none."""
        return self.records.get(storage_key)

    def promises_between(self, begin: bytes, end: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``most`` promises of a range of storage keys, as stored."""
        return sorted(item for item in self.promises.items() if begin <= item[0] < end)[:most]

    def commit(self, writes: Sequence[Write]) -> list[Merged]:
        """Merge writes."""
        transaction = _TwinTransaction(self.records, self.promises)
        merged, self._ceiling = merge(transaction, writes, self._ceiling)
        for write in writes:
            self.marks.update(write.marks)
        self.high_water = raised(self.high_water, writes, merged)
        self.newest = max([self.newest, *(write.newest for write in writes)])
        return merged

    def put_newest(self, storage_key: bytes, record: bytes, version: Version) -> bool:
        """Store one record that is stamped after all others."""
        if version <= self._ceiling:
            return False
        self.commit([Write([(storage_key, record)], 0, newest_stamp(version), version=version)])
        return True

    @property
    def commits_at_once(self) -> bool:
        """Return False, as a store that syncs each commit."""
        return False

    def has_room(self, reserve: int) -> bool:
        """Return True, because a dictionary has no disk."""
        return True

    def disk_state(self) -> DiskState:
        """Return ``AMPLE``, because a dictionary has no disk."""
        return DiskState.AMPLE

    def check_writable(self) -> str | None:
        """Return None if the store accepts writes, else the reason why not."""
        return self._condemned

    def condemn(self, reason: str) -> None:
        """Accept no more writes."""
        self._condemned = reason

    def stats(self) -> StoreStats:
        """Return sizes."""
        used = sum(len(key) + len(record) for key, record in self.records.items())
        return StoreStats(len(self.records), used, used, used)

    def close(self) -> None:
        """Nothing to release."""


class _TwinTransaction:
    def __init__(self, records: dict[bytes, bytes], promises: dict[bytes, bytes]) -> None:
        self.get = records.get
        self.put = records.__setitem__
        self.promise = promises.get
        self.put_promise = promises.__setitem__
        self.put_promises = promises.update
        self._promises = promises
        self.put_all = records.update
        self._records = records

    def insert_all(self, entries: Sequence[tuple[bytes, bytes]]) -> int:
        before = len(self._records)
        for storage_key, record in entries:
            self._records.setdefault(storage_key, record)
        return len(self._records) - before

    def delete(self, storage_key: bytes) -> None:
        self._records.pop(storage_key, None)

    def drop_promise(self, storage_key: bytes) -> None:
        self._promises.pop(storage_key, None)

    def promises_between(self, begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        return sorted(item for item in self._promises.items() if begin <= item[0] < end)


class _TwinSnapshot:
    def __init__(self, records: dict[bytes, bytes]) -> None:
        self.get = records.get
        self._records = records
        self._ordered: list[bytes] = []

    def walk(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        ordered = self._ordered = self._ordered or sorted(self._records)
        first, last = bisect.bisect_left(ordered, begin), bisect.bisect_left(ordered, end)
        for storage_key in ordered[first:last]:
            yield storage_key, self._records[storage_key]
