"""The drops that a peer has to keep, and what it has removed of them; see ``topology/drops.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from dstash.cluster.topology.drops import Drop, Floors
from dstash.limits import PARTITIONS
from dstash.store.interface import Snapshot
from dstash.version import Stamp

Entries = list[tuple[bytes, bytes]]

_ALL: Final = range(PARTITIONS)


class Drops:
    """The drops of the topology, as one peer applies them.

    A partition is ``unswept`` until the covered records are removed from its part of the disk. No
    new one gets there meanwhile, because commits refuse covered records.
    """

    def __init__(self) -> None:
        self.known: tuple[Drop, ...] = ()
        self.floors = Floors()
        self.unswept: set[int] = set()
        #: Records removed since the start.
        self.removed = 0
        #: Changes with each new drop: a sweep that began earlier proves nothing about it.
        self.generation = 0

    def install(self, drops: tuple[Drop, ...]) -> bool:
        """Take the drops of another topology.

        Returns:
            whether records on disk that counted as absent may count again.
        """
        if drops == self.known:
            return False
        before = {drop.identity for drop in self.known}
        after = {drop.identity for drop in drops}
        returns = bool(self.unswept) and not before <= after
        self.known, self.floors = drops, Floors(drops)
        if after - before or returns:
            self.generation += 1
            self.unswept = set(_ALL) if drops else set()
        return returns

    def present(self, entries: Entries) -> Entries:
        """Return the (storage key, record) pairs that do not count as absent."""
        if not self.unswept:
            return entries
        return [entry for entry in entries if not self.floors.covers(*entry)]

    def seen_through(self, snapshot: Snapshot) -> Snapshot:
        """Return a snapshot whose ``get`` leaves out records that count as absent."""
        return _Filtered(snapshot, self.floors) if self.unswept else snapshot

    def passed(self, horizons: Sequence[Stamp], owned: Iterable[int]) -> list[Drop]:
        """Return the drops that this peer does not need any more."""
        if self.unswept:
            return []
        lowest = min((horizons[partition] for partition in owned), default=self.floors.newest)
        return [drop for drop in self.known if drop.stamp <= lowest]


class _Filtered:
    def __init__(self, snapshot: Snapshot, floors: Floors) -> None:
        self._snapshot = snapshot
        self._covers = floors.covers

    def get(self, storage_key: bytes) -> bytes | None:
        record = self._snapshot.get(storage_key)
        return None if record is not None and self._covers(storage_key, record) else record

    def walk(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield all records: hidden ones cost time, so the caller has to count them."""
        return self._snapshot.walk(begin, end)
