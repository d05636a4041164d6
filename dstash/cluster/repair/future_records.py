"""Future records: restamped so that all replicas accept them, or replaced by another record.

A peer whose clock is wrong, and which reads no other clock, accepts records that the other replicas
refuse. It detects them when it reads the clocks of a majority. If it waited until the time of such
a record had come, the replicas would differ until then, and the record would then win over all
later writes. So a peer that holds certainly future records (see ``ClusterClock``) asks the other
replicas for their record of each key, and acts on the replies:

- A quorum of replicas holds this very record. Its write may have been acked, and no later write
  was, because that would have replaced it on one of them (a write of a client replaces a future
  record). The record gets a stamp just above those on the other replicas.
- No quorum can hold it. It is replaced by a record of another replica that was written after the
  horizon. If there is none, it gets the lowest accepted stamp, just above the horizon, so that any
  later write wins. It was itself written after the horizon: otherwise the replicas would have
  differed and would not have agreed on that horizon.
- Too few replicas reply to decide. The record stays, and is examined again later.

Afterwards the replicas become equal by the usual comparison. If two of three replicas, or all
three, hold such records, a majority of the members hold those stamps, which makes them the present
(``ClusterClock.confirmed``), so no record is from the future. With two of five replicas, both find
each other and the first rule applies. One case has no solution: a replica that accepted a future
record and is partitioned from the others until that time brings it back as the newest record.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple

from xxhash import xxh3_64_intdigest

from dstash.cluster.replication.partitions import Entries
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge, Pause
from dstash.cluster.replication.transfer import sound_records
from dstash.errors import DStashError
from dstash.store.record import (
    VERSION_END,
    Record,
    build_record,
    highest,
    horizon_stamp,
    is_sound,
    open_record,
    partition_in,
    split_storage_key,
    version_of,
)
from dstash.types import Level, RecordFlag
from dstash.version import Stamp, newest_stamp, pack, stamp_at, unpack

Restamping = Generator[Effect, Any, int]

#: Keys requested in one message.
_MAX_KEYS: Final = 500
#: Spreads the lowest stamps, so that two records of one client do not get the same version.
_SPREAD_MASK: Final = 0xFFFF


class _Case(NamedTuple):
    """One future record, and the records of other replicas under its key."""

    key: bytes
    record: bytes
    replies: list[bytes | None]
    replicas: int
    horizon: Stamp
    began: Stamp


def restamp_all(replica: Replica) -> Restamping:
    """Resolve all future records of this peer; returns how many have to wait."""
    local_partitions, left, after = replica.local_partitions, 0, b""
    partitions = sorted(replica.view().owned_by(replica.me))
    while True:
        entries = local_partitions.walk_all(partitions, after)
        latest = replica.clock.highest_possible()
        present = local_partitions.drops.present(entries)
        future = [entry for entry in present if _is_above(entry, latest)]
        if future:
            left += yield from _restamp(replica, future)
        if len(entries) < local_partitions.slice_records:
            return left
        after = entries[-1][0]
        yield Pause()


def _is_above(entry: tuple[bytes, bytes], latest: Stamp) -> bool:
    storage_key, record = entry
    if record[VERSION_END] & RecordFlag.REGISTER:
        return False  # a quorum may have chosen it: the next round continues above it
    return newest_stamp(version_of(record)) > latest and is_sound(storage_key, record)


def _restamp(replica: Replica, entries: Entries) -> Restamping:
    """Resolve records that are near each other on disk; returns how many have to wait."""
    left = 0
    by_partition: dict[int, Entries] = {}
    for entry in entries:
        by_partition.setdefault(partition_in(entry[0]), []).append(entry)
    for partition, batch in by_partition.items():
        for begin in range(0, len(batch), _MAX_KEYS):
            left += yield from _restamp_batch(replica, partition, batch[begin : begin + _MAX_KEYS])
    return left


def _restamp_batch(replica: Replica, partition: int, entries: Entries) -> Restamping:
    clock, replicas = replica.clock, replica.view().readers[partition]
    # Chosen before any request, so that a write acked in the meantime has a later stamp.
    began = stamp_at(clock.time())
    replies: dict[bytes, list[bytes | None]] = {key: [] for key, _ in entries}
    for peer in replicas:
        if peer != replica.me and replica.is_alive(peer):
            for key, record in (yield from sound_records(peer, list(replies))):
                replies[key].append(record)
    horizon = replica.local_partitions.horizons[partition]
    floors = replica.local_partitions.drops.floors
    restamped = []
    for key, record in entries:
        # A record that was written after a drop must not get a stamp that the drop covers.
        bound = max(horizon, floors.of_key(key))
        case = _Case(key, record, replies[key], len(replicas), bound, began)
        successor = _successor(case, clock.latest())
        if successor is not None:
            restamped.append((key, successor))
    if restamped:
        replaced = frozenset(version_of(record) for _, record in entries)
        try:
            yield Merge(restamped, replaces=replaced)
        except DStashError:
            return len(entries)  # an agreement on a horizon is running, or the disk is full
    return len(entries) - len(restamped)


def _successor(case: _Case, latest: Stamp) -> bytes | None:
    """Return the record that replaces a future record; None while that is undecided."""
    needed = Level.QUORUM.needed(case.replicas)
    holders = 1 + case.replies.count(case.record)
    without = 1 + len(case.replies) - holders
    best = highest(_acceptable(case.replies, case.horizon, latest))
    if holders >= needed:
        return _promoted(case, best)
    if without <= case.replicas - needed:
        return None
    return best if best is not None else _demoted(case, latest)


def _acceptable(
    records: Sequence[bytes | None], horizon: Stamp, latest: Stamp
) -> list[bytes | None]:
    return [
        record
        for record in records
        if record is not None
        and horizon_stamp(record) > horizon
        and newest_stamp(version_of(record)) <= latest
    ]


def _promoted(case: _Case, best: bytes | None) -> bytes:
    above = max(case.horizon, newest_stamp(version_of(best)) if best else 0)
    all_replied = len(case.replies) + 1 >= case.replicas
    stamp = above + 1 if all_replied else max(above + 1, case.began)
    return _stamped(case, stamp, 0)


def _demoted(case: _Case, latest: Stamp) -> bytes:
    stamp, _, _ = unpack(version_of(case.record))
    if stamp > latest:
        spread = xxh3_64_intdigest(version_of(case.record)) & _SPREAD_MASK
        return _stamped(case, case.horizon + 1 + spread, 0)
    return _stamped(
        case, stamp, max(stamp, case.horizon) + 1
    )  # only its last touch is from the future


def _stamped(case: _Case, stamp: Stamp, touched: Stamp) -> bytes:
    record: Record = open_record(case.record)
    _, writer, _ = unpack(record.version)
    _, index, key = split_storage_key(case.key)
    return build_record(index, key, record._replace(version=pack(stamp, writer, touched)))
