"""The disk of a virtual machine: a store in memory that can be slow, full, broken and wiped."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

from dstash.errors import DiskFull, StoreFailed
from dstash.store.interface import Merged, Snapshot, Write
from dstash.store.memory import TwinStore
from dstash.version import Stamp, Version


class Copy(NamedTuple):
    """The content of a disk at one time."""

    store_id: str
    records: dict[bytes, bytes]
    marks: dict[bytes, bytes]
    high_water: Stamp
    ceiling: Version
    promises: dict[bytes, bytes]
    #: How many commits of data the disk had seen.
    commits: int


class SimulatedStore(TwinStore):
    """The dictionary twin with the faults of a disk.

    A commit that returned is on disk. A commit that was in progress when the process ended, or
    whose sync failed, is on disk completely or not at all, as drawn when the store is opened again.
    """

    def __init__(self, store_id: str, rng: Random) -> None:
        super().__init__(store_id)
        self._rng = rng
        self._sorted: list[bytes] | None = None
        self._limbo: list[Sequence[Write]] = []
        self._broken: str | None = None
        #: How many commits of data the disk has seen; a copy that is put back does not lower it.
        self.commits = 0
        #: Set from outside: no commit has room, without an earlier sign; the next sync fails.
        self.is_full = False
        self.fails_next = False
        #: Bytes that are free on the disk; None where there is room for everything.
        self.free: int | None = None

    def open_again(self) -> None:
        """Start the life of another process on this disk."""
        limbo, self._limbo, self._broken = self._limbo, [], None
        for writes in limbo:
            if self._rng.random() < 0.5:
                self._merge(writes)

    def leave_in_limbo(self, writes: Sequence[Write]) -> None:
        """Take writes whose sync never returned."""
        self._limbo.append(writes)

    def commit(self, writes: Sequence[Write]) -> list[Merged]:
        """Merge writes, unless a fault prevents it."""
        if self._broken:
            raise StoreFailed(self._broken)
        self._check_room(writes)
        if self.fails_next:
            self.fails_next = False
            self._broken = "the virtual disk failed to sync"
            self.leave_in_limbo(writes)
            raise StoreFailed(self._broken)
        return self._merge(writes)

    def _check_room(self, writes: Sequence[Write]) -> None:
        """Refuse writes that the disk has no room for; replaced records still use space."""
        needed = sum(
            len(storage_key) + len(record)
            for write in writes
            for storage_key, record in write.entries
        )
        if self.is_full or (self.free is not None and needed > self.free):
            raise DiskFull(f"no room left on the virtual disk of {self.store_id}")

    def _merge(self, writes: Sequence[Write]) -> list[Merged]:
        self._sorted = None
        before = 0 if self.free is None else self.stats().used_bytes
        merged = super().commit(writes)
        self.commits += any(map(_has_data, writes, merged))
        if self.free is not None:
            self.free -= self.stats().used_bytes - before
        return merged

    def has_room(self, reserve: int) -> bool:
        """Return whether more than ``reserve`` bytes are free."""
        return self.free is None or self.free > reserve

    def mark(self, name: bytes, content: bytes) -> None:
        """Store marks, if there is room."""
        if self.is_full or self.free == 0:
            raise DiskFull(f"no room left on the virtual disk of {self.store_id}")
        super().mark(name, content)

    def check_writable(self) -> str | None:
        """Return why the store accepts no more writes; None if it does."""
        return self._broken

    def copy(self) -> Copy:
        """Return a copy of the disk, as an operator makes it."""
        return Copy(
            self.store_id,
            dict(self.records),
            dict(self.marks),
            self.high_water,
            self._ceiling,
            dict(self.promises),
            self.commits,
        )

    def put_back(self, copy: Copy) -> None:
        """Replace the content of the disk by a copy; no process may use it."""
        self.records, self.marks = dict(copy.records), dict(copy.marks)
        self.high_water, self._ceiling = copy.high_water, copy.ceiling
        self.newest = copy.high_water
        self.promises = dict(copy.promises)
        self._limbo.clear()
        self.forget_order()

    def corruption(self, storage_key: bytes, place: int) -> None:
        """Flip a bit of a record."""
        record = bytearray(self.records[storage_key])
        record[place % len(record)] ^= 1 << (place % 8)
        self.records[storage_key] = bytes(record)

    def forget_order(self) -> None:
        """Handle a change of the records from outside."""
        self._sorted = None

    def ordered(self) -> list[bytes]:
        """Return the storage keys in order."""
        if self._sorted is None:
            self._sorted = sorted(self.records)
        return self._sorted

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Return a view of the records; nothing can change them before it is closed."""
        yield _View(self)


def _has_data(write: Write, merged: Merged) -> bool:
    """Whether a commit of a write may have changed more than marks."""
    data = write.entries or write.drops or write.replacements or write.earlier or write.resting
    return bool(data) or any(vote.stamp for vote in merged.votes)


class _View:
    """A view of the store itself: in the simulation a snapshot is always read to its end."""

    def __init__(self, store: SimulatedStore) -> None:
        self._store = store
        self.get = store.records.get

    def walk(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        ordered, records = self._store.ordered(), self._store.records
        for storage_key in ordered[
            bisect.bisect_left(ordered, begin) : bisect.bisect_left(ordered, end)
        ]:
            yield storage_key, records[storage_key]
