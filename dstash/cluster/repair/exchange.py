"""Exchange of the records that differ between two replicas of a partition, in both directions."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.cluster.replication.throttle import Throttle
from dstash.cluster.replication.transfer import (
    Entries,
    Fingerprint,
    ask,
    may_win,
    newer_on_peer,
    pull,
    push,
    version_in,
    versions_page,
)
from dstash.errors import Busy, ProtocolError
from dstash.store.digest import DIGEST_BYTES, DigestKind, bucket_of, is_reapable_at, kind_of
from dstash.store.record import ABSENT, horizon_stamp, partition_in, version_of
from dstash.version import ZERO, Stamp, write_of
from dstash.wire.packing import split
from dstash.wire.replication import BucketsReply, BucketsRequest

#: Buckets compared together: bounds the memory that a huge partition takes.
_MAX_BUCKETS: Final = 64
#: Records collected before they are sent.
_MAX_PUSHED: Final = 2000

#: The horizons of a peer that sends none.
_NO_HORIZONS: Final[Mapping[int, Stamp]] = {}


@dataclass
class Exchanged:
    """The result of an exchange.

    Attributes:
        moved: the number of records that either replica merged.
        waiting: partitions with records that have to wait until an agreement on a horizon ends.
        refused: partitions with records that were refused for any reason, ``waiting`` included.
    """

    moved: int = 0
    waiting: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def add(self, other: Exchanged) -> None:
        """Add the result of another exchange."""
        self.moved += other.moved
        self.waiting |= other.waiting
        self.refused |= other.refused


Exchanging = Generator[Effect, Any, Exchanged]


def exchange(
    replica: Replica,
    partitions: Sequence[int],
    other: str,
    horizons: Mapping[int, Stamp] = _NO_HORIZONS,
) -> Exchanging:
    """Make both replicas of small partitions (ascending) equal.

    Args:
        horizons: the horizons of the other replica, by partition, as far as they are known.
    """
    return (yield from _exchange(replica, partitions, (), other, horizons))


def exchange_large(
    replica: Replica,
    partition: int,
    other: str,
    horizons: Mapping[int, Stamp] = _NO_HORIZONS,
) -> Exchanging:
    """Like ``exchange``, for one partition with many records: only the buckets that differ."""
    reply = yield from ask(other, BucketsRequest(partition, DigestKind.CONTENT), BucketsReply)
    digests = replica.local_partitions.digests
    own_digests = yield from digests.buckets(partition, kind_of(reply.kind))
    differing = _differing_buckets(own_digests, reply.digests)
    exchanged = Exchanged()
    for begin in range(0, len(differing), _MAX_BUCKETS):
        buckets = differing[begin : begin + _MAX_BUCKETS]
        exchanged.add((yield from _exchange(replica, [partition], buckets, other, horizons)))
    return exchanged


def _exchange(
    replica: Replica,
    partitions: Sequence[int],
    buckets: Sequence[int],
    other: str,
    horizons: Mapping[int, Stamp],
) -> Exchanging:
    fingerprints: dict[bytes, Fingerprint] = {}
    after = b""
    while True:
        page, after = yield from versions_page(other, partitions, buckets, after)
        fingerprints.update(
            (key, fingerprint)
            for key, fingerprint in page.items()
            if version_in(fingerprint) != ABSENT
        )
        if not after:
            break
    newer = yield from newer_on_peer(replica, fingerprints)
    throttle = Throttle(replica, lambda: replica.repair_rate)
    pulled = yield from pull(replica, other, newer, throttle, horizons)
    exchanged = Exchanged(
        pulled.moved,
        {partition_in(key) for key, error in pulled.refused.items() if isinstance(error, Busy)},
        set(map(partition_in, pulled.refused)),
    )
    pushing = _Pushing(replica, other, fingerprints, horizons)
    exchanged.add((yield from pushing.push(partitions, set(buckets))))
    replica.repaired += exchanged.moved
    return exchanged


class _Pushing:
    """Sends another replica the records that it lacks."""

    def __init__(
        self,
        replica: Replica,
        other: str,
        fingerprints: Mapping[bytes, Fingerprint],
        horizons: Mapping[int, Stamp],
    ) -> None:
        self._replica = replica
        self._other = other
        self._fingerprints = fingerprints
        self._horizons = horizons

    def push(self, partitions: Sequence[int], buckets: set[int]) -> Exchanging:
        """Send the records that the other replica lacks, in ``buckets`` (none: in all)."""
        local_partitions = self._replica.local_partitions
        exchanged, after, missed = Exchanged(), b"", Entries()
        while True:
            entries = local_partitions.walk_all(partitions, after)
            missed += [
                entry
                for entry in local_partitions.drops.present(entries)
                if self._is_missed(*entry) and (not buckets or bucket_of(entry[0]) in buckets)
            ]
            is_last = len(entries) < local_partitions.slice_records
            if is_last or len(missed) > _MAX_PUSHED:
                exchanged.add((yield from self._send(missed)))
                missed = []
            if is_last:
                return exchanged
            after = entries[-1][0]
            yield Pause()

    def _is_missed(self, storage_key: bytes, record: bytes) -> bool:
        """Whether the other replica lacks a record that neither side has reaped."""
        fingerprint = self._fingerprints.get(storage_key, ZERO)
        if not may_win(record, fingerprint):
            return False
        partition = partition_in(storage_key)
        if is_reapable_at(record, self._replica.local_partitions.horizons[partition]):
            return False
        is_past = horizon_stamp(record) <= self._horizons.get(partition, 0)
        return not is_past or write_of(version_of(record)) == write_of(fingerprint)

    def _send(self, entries: Entries) -> Exchanging:
        refused = yield from push(self._replica, self._other, entries, compared=True)
        waiting = {partition_in(key) for key, code in refused.items() if code == Busy.code}
        moved = len(entries) - len(refused)
        return Exchanged(moved, waiting, set(map(partition_in, refused)))


def _differing_buckets(own: bytes, other: bytes) -> list[int]:
    if len(other) != len(own):
        raise ProtocolError(f"a peer sent {len(other)} bytes of bucket digests, not {len(own)}")
    pairs = zip(split(own, DIGEST_BYTES), split(other, DIGEST_BYTES), strict=True)
    return [number for number, (left, right) in enumerate(pairs) if left != right]
