"""Hints: the keys that a replica missed while it was unavailable (hinted handoff, after Dynamo).

A hint is only (peer, key), because this peer is a replica too and has the record. Hints are in
memory, bounded by count. Past the bound, and after a restart of the hint holder, only the partition
is recorded as dirty (see ``hint_marks.py``).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from itertools import islice
from typing import Any, Final

from dstash.cluster.repair.antientropy import compare
from dstash.cluster.repair.hint_marks import HintMarks
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.cluster.replication.transfer import Entries, push
from dstash.errors import Busy, DStashError
from dstash.store.interface import Store
from dstash.store.record import partition_in

Replaying = Generator[Effect, Any, None]

#: Keys replayed in one batch.
_MAX_KEYS: Final = 150
#: Dirty partitions compared in one batch.
_MAX_DIRTY_PARTITIONS: Final = 64


class Hints:
    """The hints that one peer holds.

    Args:
        limit: the maximum number of keys, over all peers.
        max_age: the age (milliseconds) at which a hint becomes a dirty partition.
    """

    def __init__(self, limit: int, max_age: int) -> None:
        self._limit = limit
        self._max_age = max_age
        self._count = 0
        #: By peer and partition, so that keys that are near each other on disk are sent together.
        self._keys: dict[str, dict[int, dict[bytes, int]]] = {}
        self._dirty: dict[str, set[int]] = {}
        #: The part that survives a restart.
        self.marks = HintMarks()

    def __len__(self) -> int:
        return self._count

    def add(self, peer: str, storage_keys: Iterable[bytes], now: int) -> None:
        """Add hints that ``peer`` missed keys."""
        partitions = self._keys.setdefault(peer, {})
        for storage_key in storage_keys:
            partition = partition_in(storage_key)
            self.marks.add(peer, partition)
            keys = partitions.get(partition, {})
            if storage_key in keys:
                keys[storage_key] = now
            elif self._count < self._limit:
                partitions.setdefault(partition, keys)[storage_key] = now
                self._count += 1
            else:
                self.mark_dirty(peer, partition)

    def age(self, now: int) -> None:
        """Replace hints that are too old by dirty partitions."""
        for peer, partitions in self._keys.items():
            for partition, keys in list(partitions.items()):
                old = [key for key, since in keys.items() if now - since > self._max_age]
                if old:
                    self._drop(peer, partition, old)
                    self.mark_dirty(peer, partition)

    def _drop(self, peer: str, partition: int, storage_keys: Iterable[bytes]) -> None:
        keys = self._keys[peer][partition]
        for storage_key in storage_keys:
            del keys[storage_key]
            self._count -= 1
        if not keys:
            del self._keys[peer][partition]

    def waiting(self) -> list[str]:
        """Return the peers that have hints or dirty partitions."""
        return sorted(
            {peer for peer, partitions in self._keys.items() if partitions}
            | {peer for peer, dirty in self._dirty.items() if dirty}
        )

    def forget(self, peer: str) -> None:
        """Drop the hints for a peer that is no longer a member."""
        self._count -= sum(map(len, self._keys.pop(peer, {}).values()))
        self._dirty.pop(peer, None)
        self.marks.keep(peer, ())

    def load(self, store: Store, peers: Iterable[str]) -> None:
        """Load the dirty partitions of members that a store has kept over a restart."""
        for peer, partitions in self.marks.load(store, peers).items():
            for partition in partitions:
                self.mark_dirty(peer, partition)

    def replayed(self, peer: str) -> None:
        """Record that all hints for a peer were replayed except those that are still held."""
        self.marks.keep(peer, {*self._keys.get(peer, ()), *self._dirty.get(peer, ())})

    def take(self, peer: str) -> list[bytes]:
        """Remove a batch of keys that a peer missed, and return them in the order on disk."""
        partitions = self._keys.get(peer, {})
        batch: list[bytes] = []
        while partitions and len(batch) < _MAX_KEYS:
            partition, keys = next(iter(partitions.items()))
            taken = list(islice(keys, _MAX_KEYS - len(batch)))
            batch += taken
            self._drop(peer, partition, taken)
        return sorted(batch)

    def take_dirty(self, peer: str) -> int | None:
        """Remove and return a dirty partition of a peer; None if there is none."""
        dirty = self._dirty.get(peer)
        return dirty.pop() if dirty else None

    def mark_dirty(self, peer: str, partition: int) -> None:
        """Record that a peer missed a write in a partition."""
        self.marks.add(peer, partition)
        self._dirty.setdefault(peer, set()).add(partition)

    def describe(self) -> dict[str, int]:
        """Return the number of hints for each peer (a dirty partition counts as one)."""
        return {
            peer: sum(map(len, self._keys.get(peer, {}).values())) + len(self._dirty.get(peer, ()))
            for peer in self.waiting()
        }

    def describe_dirty(self) -> dict[str, int]:
        """Return the number of dirty partitions of each peer that has any."""
        return {peer: len(partitions) for peer, partitions in self._dirty.items() if partitions}


def replay(replica: Replica, hints: Hints, peer: str) -> Replaying:
    """Send a peer that is available again the writes that it missed.

    Raises:
        Busy: the peer rejected some records for now; their hints are kept.
    """
    while batch := hints.take(peer):
        try:
            records = _records(replica, peer, batch)
            refused = yield from push(replica, peer, records)
            replica.replayed += len(records) - len(refused)
        except DStashError:
            hints.add(peer, batch, replica.now())
            raise
        if refused:
            hints.add(peer, refused, replica.now())
            raise Busy(f"{peer} rejected {len(refused)} records for now")
        yield Pause()
    while dirty := _take_dirty(hints, peer):
        shared = [
            partition
            for partition in dirty
            if replica.is_replica(peer, partition) and replica.is_replica(replica.me, partition)
        ]
        try:
            exchanged = yield from compare(replica, peer, shared)
        except DStashError:
            _mark_dirty(hints, peer, dirty)
            raise
        if exchanged.refused:
            _mark_dirty(hints, peer, exchanged.refused)
            raise Busy(f"{peer} rejected records of {len(exchanged.refused)} partitions for now")


def _take_dirty(hints: Hints, peer: str) -> list[int]:
    return sorted(islice(iter(lambda: hints.take_dirty(peer), None), _MAX_DIRTY_PARTITIONS))


def _mark_dirty(hints: Hints, peer: str, partitions: Iterable[int]) -> None:
    for partition in partitions:
        hints.mark_dirty(peer, partition)


def _records(replica: Replica, peer: str, storage_keys: Iterable[bytes]) -> Entries:
    with replica.local_partitions.snapshot() as snapshot:
        found = [(storage_key, snapshot.get(storage_key)) for storage_key in storage_keys]
    return [
        (storage_key, record)
        for storage_key, record in found
        if record is not None and replica.is_replica(peer, partition_in(storage_key))
    ]
