"""Records from the future: given a stamp that all replicas accept, or given up for another record.

A peer whose clock is wrong, and which reads no other clock, takes records that the other replicas
refuse. When it reads the clocks of a majority, it knows better. To wait until the time of such a
record has come would leave replicas unequal until then, and then let it win over all that was
written meanwhile. So a peer that holds records that are certainly from the future (see
``ClusterClock``) asks the other replicas of each for theirs, and stamps it again:

- A quorum of replicas hold this very record: its write may have been acked, and no later write
  was, for that would have replaced it on one of them (a write of a client replaces what is from
  the future). It gets a stamp just above what the other replicas hold.
- No quorum can hold it: it yields to what another replica holds that was written after the
  horizon. Where none holds that, it gets the lowest stamp that is accepted, just above the horizon,
  so that any later write wins. It was itself written after the horizon: else replicas would have
  differed, and would not have agreed on it.
- Too few replicas answer to tell: it stays, and is looked at again.

Then replicas compare as always, and become equal. One replica alone, two of three, or all: with
two of three or all of three, a majority of the members hold those stamps, which makes them the
present (``ClusterClock.confirmed``), and nothing is from the future. With two of five, both find
each other, and the first rule holds. What cannot be helped: a replica that took a record from the
future, and is cut off from the others until that time has come, brings it back as what it says it
is, the newest.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple

from xxhash import xxh3_64_intdigest

from dstash.cluster.replication.partitions import Entries
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge, Pause
from dstash.cluster.replication.transfer import ask
from dstash.errors import DStashError
from dstash.store.record import (
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
from dstash.types import Level
from dstash.version import Stamp, newest_stamp, pack, stamp_at, unpack
from dstash.wire import codec
from dstash.wire.messages import Records
from dstash.wire.replication import Pull
from dstash.wire.shapes import Frame

Settling = Generator[Effect, Any, int]

#: Keys that are asked for at once.
_AT_ONCE: Final = 500
#: Two records of one client that get the lowest stamp must not get the same version.
_SPREAD: Final = 0xFFFF


class _Case(NamedTuple):
    """One record from the future, and what other replicas hold under its key."""

    key: bytes
    record: bytes
    answers: list[bytes | None]
    replicas: int
    horizon: Stamp
    began: Stamp


def settle_all(replica: Replica) -> Settling:
    """Settle all records from the future that this peer holds; returns how many have to wait."""
    local_partitions, left, after = replica.local_partitions, 0, b""
    partitions = sorted(replica.view().owned_by(replica.me))
    while True:
        entries = local_partitions.walk_all(partitions, after)
        latest = replica.clock.highest_possible()
        future = [entry for entry in entries if _is_above(entry, latest)]
        if future:
            left += yield from _settle(replica, future)
        if len(entries) < local_partitions.slice_records:
            return left
        after = entries[-1][0]
        yield Pause()


def _is_above(entry: tuple[bytes, bytes], latest: Stamp) -> bool:
    storage_key, record = entry
    return newest_stamp(version_of(record)) > latest and is_sound(storage_key, record)


def _settle(replica: Replica, entries: Entries) -> Settling:
    """Settle records that are near each other on disk; returns how many have to wait."""
    left = 0
    by_partition: dict[int, Entries] = {}
    for entry in entries:
        by_partition.setdefault(partition_in(entry[0]), []).append(entry)
    for partition, members in by_partition.items():
        for begin in range(0, len(members), _AT_ONCE):
            left += yield from _settle_some(replica, partition, members[begin : begin + _AT_ONCE])
    return left


def _settle_some(replica: Replica, partition: int, entries: Entries) -> Settling:
    clock, replicas = replica.clock, replica.view().readers[partition]
    # Chosen before anything is asked: a write that is acked meanwhile has a later stamp.
    began = stamp_at(clock.time())
    answers: dict[bytes, list[bytes | None]] = {key: [] for key, _ in entries}
    for peer in replicas:
        if peer != replica.me and replica.is_alive(peer):
            yield from _hear(peer, answers)
    horizon = replica.local_partitions.horizons[partition]
    settled = []
    for key, record in entries:
        case = _Case(key, record, answers[key], len(replicas), horizon, began)
        successor = _successor(case, clock.latest())
        if successor is not None:
            settled.append((key, successor))
    if settled:
        replaced = frozenset(version_of(record) for _, record in entries)
        try:
            yield Merge(settled, replaces=replaced)
        except DStashError:
            return len(entries)  # replicas are agreeing on the past, or the disk is full
    return len(entries) - len(settled)


def _hear(peer: str, answers: dict[bytes, list[bytes | None]]) -> Generator[Effect, Any, None]:
    """Add what one replica holds; nothing for what it cannot tell."""
    keys = list(answers)
    while keys:
        try:
            reply = yield from ask(peer, Pull(Frame(codec.pack_blobs(keys))), Records)
        except DStashError:
            return
        records = codec.unpack_optional_blobs(reply.records)
        corrupt = set(reply.corrupt)
        for place, (key, record) in enumerate(zip(keys, records, strict=False)):
            if place not in corrupt and (record is None or is_sound(key, record)):
                answers[key].append(record)
        if not records:
            return
        keys = keys[len(records) :]


def _successor(case: _Case, latest: Stamp) -> bytes | None:
    """Return the record that takes the place of one from the future; None while that is open."""
    needed = Level.QUORUM.needed(case.replicas)
    holders = 1 + case.answers.count(case.record)
    without = 1 + len(case.answers) - holders
    best = highest(_acceptable(case.answers, case.horizon, latest))
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
    heard_all = len(case.answers) + 1 >= case.replicas
    stamp = above + 1 if heard_all else max(above + 1, case.began)
    return _stamped(case, stamp, 0)


def _demoted(case: _Case, latest: Stamp) -> bytes:
    stamp, _, _ = unpack(version_of(case.record))
    if stamp > latest:
        spread = xxh3_64_intdigest(version_of(case.record)) & _SPREAD
        return _stamped(case, case.horizon + 1 + spread, 0)
    return _stamped(case, stamp, max(stamp, case.horizon) + 1)  # its last touch alone is too new


def _stamped(case: _Case, stamp: Stamp, touched: Stamp) -> bytes:
    record: Record = open_record(case.record)
    _, writer, _ = unpack(record.version)
    _, index, key = split_storage_key(case.key)
    return build_record(index, key, record._replace(version=pack(stamp, writer, touched)))
