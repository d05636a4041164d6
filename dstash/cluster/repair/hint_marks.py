"""The partitions with hints, on disk, so that a restart of the hint holder loses no hint.

Hints are many and change often, so only their partitions are stored: one bitmap for each peer that
missed a write. The bitmaps are marks of the store and commit together with other writes. After a
restart these partitions are dirty: they are compared with the peer, and differences are repaired.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from typing import Any, Final

from dstash.cluster.replication.tasks import Effect, Merge
from dstash.errors import DStashError
from dstash.limits import PARTITIONS
from dstash.store.interface import Store

_MARK: Final = b"hints:"
_BYTES: Final = PARTITIONS // 8

#: Name and content of a mark.
Mark = tuple[bytes, bytes]


class HintMarks:
    """The bitmaps that one peer stores."""

    def __init__(self) -> None:
        self._partitions: dict[str, set[int]] = {}
        self._unsaved: set[str] = set()

    @property
    def has_unsaved(self) -> bool:
        """Whether any bitmap changed since it was last saved."""
        return bool(self._unsaved)

    def add(self, peer: str, partition: int) -> None:
        """Record that a peer missed a write in a partition."""
        partitions = self._partitions.setdefault(peer, set())
        if partition not in partitions:
            partitions.add(partition)
            self._unsaved.add(peer)

    def keep(self, peer: str, partitions: Collection[int]) -> None:
        """Clear the partitions of a peer, except for these."""
        before = self._partitions.pop(peer, set())
        kept = before.intersection(partitions)
        if kept:
            self._partitions[peer] = kept
        if kept != before:
            self._unsaved.add(peer)

    def load(self, store: Store, peers: Iterable[str]) -> dict[str, set[int]]:
        """Load the bitmaps of peers from a store; returns their partitions by peer."""
        for peer in peers:
            bitmap = store.marked(_MARK + peer.encode()) or b""
            if len(bitmap) == _BYTES and any(bitmap):
                self._partitions[peer] = _unpack(bitmap)
        return {peer: set(partitions) for peer, partitions in self._partitions.items()}

    def save(self) -> Generator[Effect, Any, None]:
        """Commit (as a task) all changed bitmaps, until none changes during a commit."""
        while self._unsaved:
            unsaved, self._unsaved = self._unsaved, set()
            try:
                yield Merge(marks=[self._mark_of(peer) for peer in sorted(unsaved)])
            except DStashError:
                self._unsaved |= unsaved
                raise

    def _mark_of(self, peer: str) -> Mark:
        partitions = self._partitions.get(peer)
        return _MARK + peer.encode(), _pack(partitions) if partitions else b""


def _pack(partitions: Iterable[int]) -> bytes:
    bits = 0
    for partition in partitions:
        bits |= 1 << partition
    return bits.to_bytes(_BYTES, "little")


def _unpack(bitmap: bytes) -> set[int]:
    bits = int.from_bytes(bitmap, "little")
    return {partition for partition in range(PARTITIONS) if bits >> partition & 1}
