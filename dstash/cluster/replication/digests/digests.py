"""The digests of the partitions of one store.

A digest is computed on request and remembered, by segment, until a record changes. A walk reads in
slices, each with its own snapshot, so that no snapshot is held for long.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from dstash.cluster.replication.corruption import Corruption
from dstash.cluster.replication.digests.segments import MAX_SEGMENTS, Segments
from dstash.cluster.replication.drops import Drops
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.limits import PARTITIONS
from dstash.store.digest import BUCKETS, DIGEST_BYTES, Contents, DigestKind, Sum, bucket_of
from dstash.store.interface import Store
from dstash.store.record import partition_in, partition_range
from dstash.version import Stamp

#: Slices of one partition after which a walk pauses for longer.
_SLICES_PER_PAUSE: Final = 3

#: Cost of opening a range, in records walked.
OPEN_COST_RECORDS: Final = 10

_SUM_MASK: Final = (1 << 8 * DIGEST_BYTES) - 1
_NO_DIGESTS: Final[dict[DigestKind, bytes]] = {}
_NOTHING: Final = Contents()

Entries = list[tuple[bytes, bytes]]
Walking = Generator[Effect, None, bytes]


def slices(store: Store, begin: bytes, end: bytes, size: int) -> Iterator[Entries]:
    """Yield the records of a range in slices, each from its own snapshot; the last is not full."""
    while True:
        with store.snapshot() as snapshot:
            entries = list(islice(snapshot.walk(begin, end), size))
        yield entries
        if len(entries) < size:
            return
        begin = entries[-1][0] + b"\0"


@dataclass(slots=True)
class _Found:
    """What a walk is for, and what it has found; see ``Sum``. ``read`` counts records on disk."""

    horizon: Stamp
    until: Stamp | None
    kind: DigestKind
    value: int = 0
    contents: Contents = _NOTHING
    corrupt: list[bytes] = field(default_factory=list)
    read: int = 0
    slices: int = 0


class Digests:
    """The digests of the partitions of one store, in memory.

    Args:
        store: the store.
        drops: the drops of the topology: what they cover counts as missing.
        corruption: receives the corrupt records that walks find.
        horizon_of: returns the horizon of a partition.
        slice_records: how many records are walked in one scheduler step.
    """

    def __init__(
        self,
        store: Store,
        drops: Drops,
        corruption: Corruption,
        horizon_of: Callable[[int], Stamp],
        slice_records: int,
    ) -> None:
        self._store = store
        self._drops = drops
        self._corruption = corruption
        self._horizon_of = horizon_of
        self._slice_records = slice_records
        #: How many records the last walk of each partition found, in all.
        self.records = 0
        #: Changes whenever a known digest or a horizon may have changed.
        self.generation = 0
        #: By partition and kind: at the current horizon.
        self._known: dict[int, dict[DigestKind, bytes]] = {}
        self._segments: dict[int, Segments] = {}
        self._contents: dict[int, Contents] = {}
        self._changes = array("Q", bytes(8 * PARTITIONS))
        self._work = 0  # since the last pause, in records walked

    # -- changes

    def changed(self, partitions: Collection[int]) -> None:
        """Record that any records of partitions may have changed."""
        self.generation += 1
        changes = self._changes
        for partition in partitions:
            changes[partition] += 1
        if self._segments or self._known:
            for partition in partitions:
                self._segments.pop(partition, None)
                self._known.pop(partition, None)

    def changed_key(self, storage_key: bytes) -> int:
        """Record that a record may have changed; returns its partition."""
        partition = partition_in(storage_key)
        self.generation += 1
        self._changes[partition] += 1
        self._known.pop(partition, None)
        if (segments := self._segments.get(partition)) is not None:
            segments.touch(storage_key)
        return partition

    def horizon_changed(self, partition: int) -> None:
        """Record that the horizon of a partition has changed."""
        self.generation += 1
        self._known.pop(partition, None)

    def clear(self) -> None:
        """Discard all digests, because other records count as missing."""
        self.generation += 1
        self._known.clear()
        self._segments.clear()

    # -- what the last walks found

    def known(self, partitions: Iterable[int], kind: DigestKind) -> list[bytes | None]:
        """Return the digests of partitions; None for those that are not known without a task."""
        digests, unswept, none = self._known, self._drops.unswept, _NO_DIGESTS
        # A digest from before a drop may cover records that are still to be removed.
        return [
            None if partition in unswept else digests.get(partition, none).get(kind)
            for partition in partitions
        ]

    def count(self, partition: int) -> int:
        """Return how many records the last walk of a partition found."""
        return self._contents.get(partition, _NOTHING).records

    def gains_from(self, partition: int, stamp: Stamp) -> bool:
        """Whether a higher horizon, of ``stamp``, would let the last seen records be dropped.

        That of registers also settles what earlier voters have promised (T3).
        """
        contents, horizon = self._contents.get(partition, _NOTHING), self._horizon_of(partition)
        return contents.valid_until <= stamp or contents.register > horizon

    def reapable_ranges(self, partition: int) -> list[tuple[bytes, bytes]]:
        """Return the ranges of storage keys that may have records below the horizon to drop."""
        horizon = self._horizon_of(partition)
        if self._contents.get(partition, _NOTHING).reapable > horizon:
            return []
        segments = self._segments.get(partition)
        return [partition_range(partition)] if segments is None else segments.ranges(horizon)

    # -- walks

    def scrub(self, partition: int) -> Walking:
        """Check every record of a partition, and recompute its digest."""
        self._segments.pop(partition, None)
        return (yield from self._compute(partition, None, DigestKind.CONTENT))

    def of(
        self,
        partition: int,
        until: Stamp | None = None,
        kind: DigestKind = DigestKind.CONTENT,
    ) -> Walking:
        """Return (as a task) the digest of a partition; of records up to ``until`` if given."""
        known = self.known([partition], kind)[0] if until is None else None
        return known if known is not None else (yield from self._compute(partition, until, kind))

    def _compute(self, partition: int, until: Stamp | None, kind: DigestKind) -> Walking:
        # For a proposed horizon only the records that are live at it have to be equal: some
        # replicas may already have dropped the tombstones, and others not yet.
        horizon = self._horizon_of(partition) if until is None else until
        before = self._changes[partition]
        found = yield from self._walk(partition, _Found(horizon, until, kind))
        digest = (found.value & _SUM_MASK).to_bytes(DIGEST_BYTES, "big")
        is_valid = before == self._changes[partition] and horizon == self._horizon_of(partition)
        if until is None and is_valid:
            digests = self._known.setdefault(partition, {})
            if digests.get(kind, digest) != digest:  # a record is corrupt on the disk now
                self.generation += 1
                digests.clear()
            digests[kind] = digest
            self.records += found.contents.records - self.count(partition)
            self._contents[partition] = found.contents
        self._work += OPEN_COST_RECORDS + found.read
        if self._work >= self._slice_records:
            self._work = 0
            yield Pause()
        return digest

    def _walk(self, partition: int, found: _Found) -> Generator[Effect, None, _Found]:
        """Add up what is known of the segments, and read the others."""
        corrupt = self._corruption.known(partition)
        # Then every record is read: to see which corrupt records are left, and what is dropped.
        is_suspect = partition in self._corruption or partition in self._drops.unswept
        segments = Segments(*partition_range(partition))
        if is_suspect:
            self._segments.pop(partition, None)
        else:
            segments = self._segments.setdefault(partition, segments)
        size = max(self._slice_records, self.count(partition) // (MAX_SEGMENTS // 2))
        for segment, end in segments:
            known = segment.sum_at(found.horizon, found.until, found.kind)
            if known is not None and segment.contents is not None:
                found.value += known
                found.contents = found.contents.joined(segment.contents)
                continue
            changes = segment.changes
            parts = yield from self._read(segment.begin, end, size, found)
            for _, part in parts:
                found.value += part.value
                found.contents = found.contents.joined(part.contents)
                found.corrupt += part.corrupt
            if segment.changes == changes and all(part.is_whole for _, part in parts):
                segments.split(segment, parts)
        if is_suspect:
            self._corruption.checked(partition, corrupt, found.corrupt)
        else:
            self._corruption.report(found.corrupt)
        return found

    def _read(
        self, begin: bytes, end: bytes, size: int, found: _Found
    ) -> Generator[Effect, None, list[tuple[bytes, Sum]]]:
        """Return the begins and sums of the parts of a range; each has ``size`` records or more."""
        parts = [(begin, Sum(found.horizon, found.until, found.kind))]
        for entries in slices(self._store, begin, end, self._slice_records):
            if entries and parts[-1][1].contents.records >= size:
                parts.append((entries[0][0], Sum(found.horizon, found.until, found.kind)))
            parts[-1][1].add(self._drops.present(entries))
            found.read += len(entries)
            found.slices += 1
            if len(entries) == self._slice_records:
                # Requests have priority over walks.
                yield Pause(int(found.slices % _SLICES_PER_PAUSE == 0))
        return parts

    def buckets(self, partition: int, kind: DigestKind = DigestKind.CONTENT) -> Walking:
        """Return (as a task) the concatenated bucket digests of a partition."""
        sums = [Sum(self._horizon_of(partition), kind=kind) for _ in range(BUCKETS)]
        for entries in slices(self._store, *partition_range(partition), self._slice_records):
            for entry in self._drops.present(entries):
                sums[bucket_of(entry[0])].add([entry])
            yield Pause()
        for bucket_sum in sums:
            self._corruption.report(bucket_sum.corrupt)
        return b"".join([bucket_sum.digest() for bucket_sum in sums])
