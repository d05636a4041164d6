"""Hints: which keys a replica missed while it was away (hinted handoff, after Dynamo).

A hint is only (peer, key): the record is here anyway, for this peer is a replica of it too. Hints
live in memory, bounded by count; past the bound, and after a restart of their holder, only the
partition is remembered as dirty (see ``hint_marks.py``).
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

_AT_ONCE: Final = 150
#: Dirty partitions that are compared with one question.
_DIRTY_AT_ONCE: Final = 64


class Hints:
    """The hints one peer keeps.

    Args:
        limit: how many keys to remember, over all peers.
        max_age: milliseconds after which a hint becomes a dirty partition.
    """

    def __init__(self, limit: int, max_age: int) -> None:
        self._limit = limit
        self._max_age = max_age
        self._count = 0
        #: By peer and partition: what lies together on disk is brought together.
        self._keys: dict[str, dict[int, dict[bytes, int]]] = {}
        self._dirty: dict[str, set[int]] = {}
        #: What of it survives a restart.
        self.marks = HintMarks()

    def __len__(self) -> int:
        return self._count

    def add(self, peer: str, storage_keys: Iterable[bytes], now: int) -> None:
        """Remember that ``peer`` missed keys."""
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
        """Turn old hints into dirty partitions."""
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
        """Return the peers that missed something."""
        return sorted(
            {peer for peer, partitions in self._keys.items() if partitions}
            | {peer for peer, dirty in self._dirty.items() if dirty}
        )

    def forget(self, peer: str) -> None:
        """Drop what is remembered for a peer that is no longer a member."""
        self._count -= sum(map(len, self._keys.pop(peer, {}).values()))
        self._dirty.pop(peer, None)
        self.marks.keep(peer, ())

    def load(self, store: Store, peers: Iterable[str]) -> None:
        """Take over what a store has kept since before a restart, of peers that are members."""
        for peer, partitions in self.marks.load(store, peers).items():
            for partition in partitions:
                self.mark_dirty(peer, partition)

    def replayed(self, peer: str) -> None:
        """Take note that a peer was brought all but what waits for it still."""
        self.marks.keep(peer, {*self._keys.get(peer, ()), *self._dirty.get(peer, ())})

    def take(self, peer: str) -> list[bytes]:
        """Return some keys that a peer missed, in the order of the disk, and forget them."""
        partitions = self._keys.get(peer, {})
        some: list[bytes] = []
        while partitions and len(some) < _AT_ONCE:
            partition, keys = next(iter(partitions.items()))
            taken = list(islice(keys, _AT_ONCE - len(some)))
            some += taken
            self._drop(peer, partition, taken)
        return sorted(some)

    def take_dirty(self, peer: str) -> int | None:
        """Return a dirty partition of a peer, and forget it."""
        dirty = self._dirty.get(peer)
        return dirty.pop() if dirty else None

    def mark_dirty(self, peer: str, partition: int) -> None:
        """Remember that a peer missed something of a partition."""
        self.marks.add(peer, partition)
        self._dirty.setdefault(peer, set()).add(partition)

    def describe(self) -> dict[str, int]:
        """Return how many keys wait for each peer (a dirty partition counts as one)."""
        return {
            peer: sum(map(len, self._keys.get(peer, {}).values())) + len(self._dirty.get(peer, ()))
            for peer in self.waiting()
        }

    def describe_dirty(self) -> dict[str, int]:
        """Return of how many partitions each peer missed more than hints are kept of."""
        return {peer: len(partitions) for peer, partitions in self._dirty.items() if partitions}


def replay(replica: Replica, hints: Hints, peer: str) -> Replaying:
    """Bring a peer that is back what it missed.

    Raises:
        Busy: it would not take some records now; their hints are kept.
    """
    while some := hints.take(peer):
        try:
            records = _records(replica, peer, some)
            refused = yield from push(replica, peer, records)
            replica.replayed += len(records) - len(refused)
        except DStashError:
            hints.add(peer, some, replica.now())
            raise
        if refused:
            hints.add(peer, refused, replica.now())
            raise Busy(f"{peer} would not take {len(refused)} records")
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
            raise Busy(f"{peer} would not take all of {len(exchanged.refused)} partitions")


def _take_dirty(hints: Hints, peer: str) -> list[int]:
    return sorted(islice(iter(lambda: hints.take_dirty(peer), None), _DIRTY_AT_ONCE))


def _mark_dirty(hints: Hints, peer: str, partitions: Iterable[int]) -> None:
    for partition in partitions:
        hints.mark_dirty(peer, partition)


def _records(replica: Replica, peer: str, storage_keys: Iterable[bytes]) -> Entries:
    with replica.local_partitions.store.snapshot() as snapshot:
        found = [(one, snapshot.get(one)) for one in storage_keys]
    return [
        (storage_key, record)
        for storage_key, record in found
        if record is not None and replica.is_replica(peer, partition_in(storage_key))
    ]
