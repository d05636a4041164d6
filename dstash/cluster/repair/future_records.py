"""Future records: restamped so that all replicas accept them, or replaced by another record.

A peer whose clock is wrong, and which reads no other clock, accepts records that the other replicas
refuse. It detects them when it reads the clocks of a majority. If it waited until the time of such
a record had come, the replicas would differ until then, and the record would then win over all
later writes. So a peer that holds certainly future records (see ``ClusterClock``) asks the other
replicas for their record of each key, and acts on the replies:

- It can be the last acked write: so many replicas hold it, or a record that wins over it and may
  have taken its place, that a quorum may have accepted it. No later write was acked, because that
  would have replaced it on one of them (a write of a client replaces a future record). The record
  gets a stamp just above those on the other replicas. Lower future records are replaced before, so
  that they cannot win over the new stamp; a replica that does not reply may hold one.
- A record of another replica that wins over this one can be the last acked write. This one is
  replaced, as below.
- No quorum can have accepted it. It is replaced by a record of another replica that was written
  after the horizon. If there is none, it gets the lowest accepted stamp, just above the horizon, so
  that any later write wins. It was itself written after the horizon: otherwise the replicas would
  have differed and would not have agreed on that horizon.
- Too few replicas reply to decide. The record stays, and is examined again later. A replica that
  has lost its data (and is streamed again) is not waited for: it may have held each record.

Afterwards the replicas become equal by the usual comparison. If two of three replicas, or all
three, hold such records, a majority of the members hold those stamps, which makes them the present
(``ClusterClock.confirmed``), so no record is from the future. With two of five replicas, both find
each other and the first rule applies. One case has no solution: a replica that accepted a future
record and is partitioned from the others until that time brings it back as the newest record.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, Final, NamedTuple

from xxhash import xxh3_64_intdigest

from dstash.cluster.replication.digests.digests import Entries
from dstash.cluster.replication.future.survey import Survey, is_ahead, survey
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge, Pause, Scheduler
from dstash.errors import DStashError
from dstash.store.record import (
    Record,
    build_record,
    highest,
    horizon_stamp,
    is_sound,
    open_record,
    outranks,
    partition_in,
    split_storage_key,
    version_of,
)
from dstash.version import Stamp, newest_stamp, pack, stamp_at, unpack

Restamping = Generator[Effect, Any, int]

_TASK: Final = "future"
#: How long (milliseconds) future records wait: until they certainly are from the future, and again
#: if they could not be resolved.
_WAIT_MS: Final = 2000
_PAUSE_MS: Final = 5000
#: Keys requested in one message.
_MAX_KEYS: Final = 500
#: Spreads the lowest stamps, so that two records of one client do not get the same version.
_SPREAD_MASK: Final = 0xFFFF


class _Case(NamedTuple):
    """One future record, and what the replicas hold under its key.

    ``latest``: records above it are from the future.
    """

    key: bytes
    record: bytes
    survey: Survey
    horizon: Stamp
    latest: Stamp
    began: Stamp

    def other_future(self, best: bytes | None) -> list[bytes]:
        """Return the future records of replicas that ``best`` does not win over."""
        return [
            record
            for record in self.survey.records
            if record is not None
            and newest_stamp(version_of(record)) > self.latest
            and not (best is not None and outranks(best, record))
        ]


class FutureRecords:
    """Decides when this peer resolves its future records.

    Args:
        replica: this peer.
        scheduler: runs the task.
    """

    def __init__(self, replica: Replica, scheduler: Scheduler) -> None:
        self._replica = replica
        self._scheduler = scheduler
        #: The newest stamp of the store when all its future records were resolved last.
        self._settled_up_to: Stamp = 0
        #: The highest stamp that was accepted since that task began.
        self._accepted_up_to: Stamp = 0
        self._after: int | None = None

    def tick(self, now: int) -> None:
        """Start the task if there may be future records that were not resolved yet."""
        clock, newest = self._replica.clock, self._replica.local_partitions.store.newest
        if not clock.knows_majority:
            self._settled_up_to = 0  # meanwhile this peer accepts writes by its own clock
            return
        # This bound is lower than those below but cheap: nearly all stamps are from the past.
        if newest <= stamp_at(clock.time()):
            self._settled_up_to, self._after = 0, None
            return
        self._accepted_up_to = max(self._accepted_up_to, clock.latest())
        certain = clock.highest_possible()
        # If the bound follows a clock, records slightly above it are soon accepted. If it follows
        # the stamps of a majority, they stay above it until the next write.
        slack = 0 if clock.is_present_held else stamp_at(_WAIT_MS)
        if self._accepted_up_to > certain + slack:
            # The bound was higher, so there may be other future records below that stamp.
            self._settled_up_to = 0
        if newest <= max(self._settled_up_to, certain):
            self._after = None
            return
        if self._after is None:
            clock.is_due = True  # perhaps a majority has stamps as new
            self._after = now + _WAIT_MS
        if now >= self._after and not self._scheduler.running(_TASK):
            self._accepted_up_to = clock.latest()
            self._scheduler.spawn(_TASK, restamp_all(self._replica), partial(self._ended, newest))

    def _ended(self, newest: Stamp, left: Any, failure: DStashError | None) -> None:
        if left or failure is not None:
            self._after = self._replica.now() + _PAUSE_MS
        else:
            self._settled_up_to = newest


def restamp_all(replica: Replica) -> Restamping:
    """Resolve all future records of this peer; returns how many have to wait.

    Records that are not certainly from the future, but not accepted now either, have to wait.
    """
    local_partitions, left, after = replica.local_partitions, 0, b""
    partitions = sorted(replica.view().owned_by(replica.me))
    while True:
        entries = local_partitions.walk_all(partitions, after)
        accepted, certain = replica.clock.latest(), replica.clock.highest_possible()
        present = local_partitions.drops.present(entries)
        ahead = [entry for entry in present if is_ahead(entry, accepted) and is_sound(*entry)]
        future = [entry for entry in ahead if newest_stamp(version_of(entry[1])) > certain]
        left += len(ahead) - len(future)
        if future:
            left += yield from _restamp(replica, future)
        if len(entries) < local_partitions.slice_records:
            return left
        after = entries[-1][0]
        yield Pause()


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
    clock = replica.clock
    # Chosen before any request, so that a write acked in the meantime has a later stamp.
    began = stamp_at(clock.time())
    surveys = yield from survey(replica, partition, [key for key, _ in entries])
    horizon = replica.local_partitions.horizons[partition]
    floors = replica.local_partitions.drops.floors
    latest = clock.latest()
    restamped = []
    for key, record in entries:
        # A record that was written after a drop must not get a stamp that the drop covers.
        bound = max(horizon, floors.of_key(key))
        case = _Case(key, record, surveys[key], bound, latest, began)
        successor = _successor(case)
        if successor is not None:
            restamped.append((key, successor))
    if restamped:
        replaced = frozenset(version_of(record) for _, record in entries)
        try:
            yield Merge(restamped, replaces=replaced)
        except DStashError:
            return len(entries)  # an agreement on a horizon is running, or the disk is full
    # A commit leaves out records that a horizon or a drop has passed in the meantime.
    with replica.local_partitions.store.snapshot() as snapshot:
        return sum(snapshot.get(key) == record for key, record in entries)


def _successor(case: _Case) -> bytes | None:
    """Return the record that replaces a future record; None while that is undecided."""
    best = highest(_acceptable(case))
    if best is not None and outranks(best, case.record):
        return best  # only the last touch of this record is from the future
    others = case.other_future(best)
    higher = [record for record in others if outranks(record, case.record)]
    lower = [record for record in others if outranks(case.record, record)]
    if not any(map(case.survey.counts_as_acked, higher)):
        if any(map(case.survey.may_be_acked, higher)):
            return None
        if case.survey.may_be_acked(case.record):
            has_lower = lower or case.survey.silent  # a silent replica may hold one
            is_decided = case.survey.counts_as_acked(case.record) and not has_lower
            return _promoted(case, best) if is_decided else None
        if any(map(case.survey.may_be_acked, lower)):
            return None
    return best if best is not None else _demoted(case)


def _acceptable(case: _Case) -> list[bytes]:
    return [
        record
        for record in case.survey.records
        if record is not None
        and horizon_stamp(record) > case.horizon
        and newest_stamp(version_of(record)) <= case.latest
    ]


def _promoted(case: _Case, best: bytes | None) -> bytes:
    above = max(case.horizon, newest_stamp(version_of(best)) if best else 0)
    all_replied = len(case.survey.records) >= case.survey.replicas
    stamp = above + 1 if all_replied else max(above + 1, case.began)
    return _stamped(case, stamp, 0)


def _demoted(case: _Case) -> bytes:
    stamp, _, _ = unpack(version_of(case.record))
    if stamp > case.latest:
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
