"""Surveys: what the replicas of a key hold, and whether a quorum may have accepted a record.

A record that is stamped ahead of every clock may be the last acked write of its key, or a write
that only a peer with a wrong clock has accepted. The stamp does not tell which; the number of
replicas that hold it, or a record that may have taken its place, does.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge
from dstash.cluster.replication.transfer import Entries, sound_records, take
from dstash.errors import Busy, ClockSkew, DStashError
from dstash.store.record import VERSION_END, is_sound, outranks, partition_in, version_of
from dstash.types import Level, RecordFlag
from dstash.version import Stamp, newest_stamp


class Survey(NamedTuple):
    """What the replicas of a key hold.

    ``records``: of the replicas that replied; None where there is none. ``replicas``: how many
    there are. ``lost``: how many of them have lost their data, without a request that waives their
    acks. ``silent``: how many others did not reply.
    """

    records: Sequence[bytes | None]
    replicas: int
    lost: int
    silent: int

    @property
    def needed(self) -> int:
        """How many replicas are a write quorum."""
        return Level.QUORUM.needed(self.replicas)

    def held(self, record: bytes) -> int:
        """Return how many replicas have a record, or one that may have taken its place."""
        return sum(other is not None and not outranks(record, other) for other in self.records)

    def may_be_acked(self, record: bytes) -> bool:
        """Whether a quorum may have accepted a record, as far as this peer knows."""
        return self.held(record) + self.lost + self.silent >= self.needed

    def counts_as_acked(self, record: bytes) -> bool:
        """Whether a quorum may have accepted a record, and no more replies can deny that."""
        return self.held(record) + (0 if self.silent else self.lost) >= self.needed


def survey(
    replica: Replica, partition: int, keys: Sequence[bytes]
) -> Generator[Effect, Any, dict[bytes, Survey]]:
    """Return (as a task) what the replicas that serve reads hold under keys of one partition.

    The record of this peer is included if it is one of these replicas and has not lost its data.
    """
    view = replica.view()
    owners = [view.members[peer] for peer in view.readers[partition]]
    synced = [member.id for member in owners if member.synced]
    lost = sum(not member.synced and not member.is_waived for member in owners)
    records: dict[bytes, list[bytes | None]] = {key: [] for key in keys}
    if replica.me in synced:
        with replica.local_partitions.snapshot() as snapshot:
            for key in keys:
                record = snapshot.get(key)
                if record is None or is_sound(key, record):
                    records[key].append(record)
    for peer in synced:
        if peer != replica.me and replica.is_alive(peer):
            for key, record in (yield from sound_records(peer, keys)):
                records[key].append(record)
    return {
        key: Survey(found, len(owners), lost, len(synced) - len(found))
        for key, found in records.items()
    }


def is_ahead(entry: tuple[bytes, bytes], latest: Stamp) -> bool:
    """Whether a record is of the future: not a register, and stamped later than ``latest``."""
    record = entry[1]
    if record[VERSION_END] & RecordFlag.REGISTER:
        return False  # a quorum may have chosen it: the next round continues above it
    return newest_stamp(version_of(record)) > latest


def take_streamed(replica: Replica, entries: Entries) -> Generator[Effect, Any, DStashError | None]:
    """Merge records of a partition that is streamed; returns the error if some have to wait.

    Streaming must deliver every acked write, so no clock may refuse a future record that a quorum
    of the replicas holds. One that no quorum can have accepted is left out, because it must not
    spread. Until it is known which it is, the partition is not complete.
    """
    error = yield from take(entries)
    if not isinstance(error, Busy | ClockSkew):
        return error
    latest = replica.clock.latest()
    ahead = [entry for entry in entries if is_ahead(entry, latest)]
    if not ahead:
        return error
    error = yield from take([entry for entry in entries if not is_ahead(entry, latest)])
    if error is not None:
        return error
    by_partition: dict[int, Entries] = {}
    for entry in ahead:
        by_partition.setdefault(partition_in(entry[0]), []).append(entry)
    for partition, part in by_partition.items():
        error = yield from _take_ahead(replica, partition, part)
        if error is not None:
            return error
    return None


def _take_ahead(
    replica: Replica, partition: int, entries: Entries
) -> Generator[Effect, Any, DStashError | None]:
    surveys = yield from survey(replica, partition, [key for key, _ in entries])
    view = replica.view()
    # With no vote that counts, all stores together count as the data.
    is_union = not view.votes_needed(view.readers[partition])
    latest = replica.clock.latest()
    taken: Entries = []
    for key, record in entries:
        surveyed = surveys[key]
        for candidate in dict.fromkeys((record, *surveyed.records)):
            if candidate is None:
                continue
            if is_ahead((key, candidate), latest) and not is_union:
                if not surveyed.may_be_acked(candidate):
                    continue
                if not surveyed.counts_as_acked(candidate):
                    return Busy(f"{surveyed.silent} replicas may hold a record of the future")
            taken.append((key, candidate))
    yield Merge(taken, is_acked=True)
    return None
