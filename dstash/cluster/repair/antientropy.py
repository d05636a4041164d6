"""Anti-entropy: rounds of comparison that find and repair differences between replicas.

In each pair of replicas of a partition, one starts the comparison: the lower id for even
partitions, the higher id for odd partitions. An idle, equal pair costs 31 bytes a partition.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from dstash.cluster.repair.exchange import Exchanged, Exchanging, exchange, exchange_large
from dstash.cluster.replication.handlers import PARTITIONS_PER_STEP, PARTITIONS_PER_WALK
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.cluster.replication.transfer import ask
from dstash.errors import Busy, ClockSkew, CorruptRecord, DiskFull, DStashError
from dstash.limits import PARTITIONS
from dstash.store.digest import DigestKind, kind_of
from dstash.version import Stamp
from dstash.wire.packing import (
    BUSY,
    pack_partitions,
    split_digests,
    split_flags,
    split_horizons,
    unpack_partitions,
)
from dstash.wire.replication import DigestsReply, DigestsRequest

Comparing = Generator[Effect, Any, None]
#: Returns the partitions with records that have to wait.
Waiting = Generator[Effect, Any, set[int]]

#: Partitions compared in one request.
_MAX_BATCH: Final = 512
#: A partition with more records than this is compared by buckets first.
_MAX_SMALL_RECORDS: Final = 4000
#: A partition that is always busy is compared anyway after this time.
_OVERDUE_MS: Final = 30_000
#: Pauses before the comparison of partitions with records that had to wait is repeated.
_RETRY_PAUSES_MS: Final = (1000, 2000, 4000)
#: Records of small partitions that are exchanged together.
_MAX_RECORDS_TOGETHER: Final = 20_000
#: Errors that concern single records. They must not delay other partitions.
_REFUSALS: Final = (Busy, ClockSkew, CorruptRecord, DiskFull)


def compare_all(replica: Replica) -> Comparing:
    """Compare every partition with every other live replica of it, once.

    Partitions with records that had to wait for an agreement on a horizon are compared again soon,
    so that neither task can block the other for ever, for any intervals.
    """
    _drop_unavailable(replica)
    waiting: dict[str, set[int]] = {}
    for peer in sorted(replica.view().members):
        if peer != replica.me and replica.is_alive(peer):
            # The peer may fail or change its epoch: the next round tries again.
            with suppress(DStashError):
                waiting[peer] = yield from compare_with(replica, peer)
    for pause in _RETRY_PAUSES_MS:
        waiting = {peer: partitions for peer, partitions in waiting.items() if partitions}
        if not waiting:
            return
        yield Pause(pause)
        for peer, partitions in waiting.items():
            shared = set(_shared_with(replica, peer)) & partitions
            waiting[peer] = set()
            with suppress(DStashError):
                waiting[peer] = (yield from compare(replica, peer, sorted(shared))).waiting


def compare_with(replica: Replica, peer: str) -> Waiting:
    """Compare the partitions shared with one peer, and repair those that differ.

    Returns:
        the partitions with records that have to wait until an agreement on a horizon ends.
    """
    shared = _shared_with(replica, peer)
    replica.differing.keep(peer, shared)
    quiet, overdue = _due(replica, peer, shared)
    exchanged = yield from compare(replica, peer, quiet, skip_busy=True)
    exchanged.add((yield from compare(replica, peer, overdue)))
    return exchanged.waiting


def compare(
    replica: Replica, peer: str, partitions: Sequence[int], *, skip_busy: bool = False
) -> Exchanging:
    """Compare partitions (ascending) with one peer, and repair those that differ.

    Args:
        skip_busy: whether to skip partitions that are busy on the other peer.
    """
    exchanged = Exchanged()
    for begin in range(0, len(partitions), _MAX_BATCH):
        request = DigestsRequest(
            pack_partitions(partitions[begin : begin + _MAX_BATCH]),
            skip_busy,
            kind=DigestKind.CONTENT,
        )
        differing, horizons = yield from _differing(replica, peer, request)
        exchanged.add((yield from reconcile(replica, peer, differing, horizons)))
    return exchanged


def _drop_unavailable(replica: Replica) -> None:
    """Drop differences with unavailable peers; they are found again when the peer returns."""
    for peer in replica.differing.others():
        if peer not in replica.view().members or not replica.is_alive(peer):
            replica.differing.keep(peer, ())


def _due(replica: Replica, peer: str, partitions: list[int]) -> tuple[list[int], list[int]]:
    """Return the partitions that are not busy, and those whose comparison is overdue."""
    local_partitions, now = replica.local_partitions, replica.now()
    compared_at = local_partitions.compared_at(peer, now)
    overdue = [number for number in partitions if now - compared_at[number] > _OVERDUE_MS]
    quiet = local_partitions.quiet_among(partitions, now)
    return sorted(set(quiet).difference(overdue)), overdue


def reconcile(
    replica: Replica,
    peer: str,
    differing: Iterable[tuple[int, int]],
    horizons: Mapping[int, Stamp],
) -> Exchanging:
    """Make partitions equal on both peers; ``differing`` has each with its number of records.

    Refused records are left to the next round, or to a retry in this round.
    """
    exchanged = Exchanged()
    small: list[int] = []
    weight = 0
    for partition, records in differing:
        if records > _MAX_SMALL_RECORDS:
            task = exchange_large(replica, partition, peer, horizons)
            exchanged.add((yield from _refusable(task, [partition])))
            continue
        small.append(partition)
        weight += records
        if weight > _MAX_RECORDS_TOGETHER:
            task = exchange(replica, small, peer, horizons)
            exchanged.add((yield from _refusable(task, small)))
            small, weight = [], 0
    if small:
        exchanged.add((yield from _refusable(exchange(replica, small, peer, horizons), small)))
    return exchanged


def _refusable(exchanging: Exchanging, partitions: Iterable[int]) -> Exchanging:
    """Run an exchange; a refusal of some records does not stop that of other partitions."""
    try:
        return (yield from exchanging)
    except _REFUSALS:
        return Exchanged(refused=set(partitions))


def _shared_with(replica: Replica, peer: str) -> list[int]:
    """Return the partitions, ascending, whose comparison with a peer this peer starts.

    Not with a peer that is streaming: that has a rate, and can be paused.
    """
    me = replica.me
    parity = 0 if me < peer else 1
    readers = replica.view().readers
    # Many partitions have the same replica set: few sets are looked at.
    have_both = {row: me in row and peer in row for row in set(readers)}
    return [number for number in range(parity, PARTITIONS, 2) if have_both[readers[number]]]


def _differing(
    replica: Replica, peer: str, request: DigestsRequest
) -> Generator[Effect, Any, tuple[list[tuple[int, int]], dict[int, Stamp]]]:
    """Return the partitions that differ, with their sizes, and the horizons of the other peer."""
    local_partitions = replica.local_partitions
    reply = yield from ask(peer, request, DigestsReply)
    now, recent = replica.now(), local_partitions.recent_replies
    if not recent.is_equal(peer, request, reply, now):
        since = local_partitions.unchanged_since(now)
        differing, horizons, are_all_equal = yield from _compare(replica, peer, request, reply)
        if are_all_equal:
            recent.note_equal(peer, request, reply, since)
        return differing, horizons
    partitions = unpack_partitions(request.partitions)
    compared_at = local_partitions.compared_at(peer, now)
    for partition in partitions:
        compared_at[partition] = now
    replica.compared += len(partitions)
    return [], {}


def _compare(
    replica: Replica, peer: str, request: DigestsRequest, reply: DigestsReply
) -> Generator[Effect, Any, tuple[list[tuple[int, int]], dict[int, Stamp], bool]]:
    """Compare a reply with this peer's digests.

    Returns:
        What ``_differing`` does, and whether all digests were known at once, and equal.
    """
    local_partitions = replica.local_partitions
    compared_at = local_partitions.compared_at(peer, replica.now())
    partitions = unpack_partitions(request.partitions)
    digests = split_digests(reply.digests, len(partitions))
    flags = split_flags(reply.busy, len(partitions))
    horizons = split_horizons(reply.horizons, len(partitions))
    differing: list[tuple[int, int]] = []
    kind, now = kind_of(reply.kind), replica.now()
    are_all_equal = True
    for begin in range(0, len(partitions), PARTITIONS_PER_STEP):
        end = min(begin + PARTITIONS_PER_STEP, len(partitions))
        some = partitions[begin:end]
        known = local_partitions.digests.known(some, kind)
        is_equal = known == digests[begin:end] and BUSY not in flags[begin:end]
        if is_equal:  # nearly always, in an idle cluster
            for partition in some:
                compared_at[partition] = now
            replica.compared += len(some)
            replica.differing.note_equal(some, peer)
        are_all_equal = are_all_equal and is_equal
        for position in () if is_equal else range(begin, end):
            if flags[position] == BUSY:
                continue
            partition, digest = partitions[position], digests[position]
            own_digest = yield from local_partitions.digests.of(partition, kind=kind)
            compared_at[partition] = now = replica.now()
            replica.compared += 1
            replica.differing.note(partition, peer, now, differs=own_digest != digest)
            if own_digest != digest:
                replica.differed += 1
                count = int.from_bytes(reply.counts[4 * position : 4 * position + 4], "big")
                differing.append((partition, max(count, local_partitions.digests.count(partition))))
                if horizons and horizons[position] != (own := local_partitions.horizons[partition]):
                    local_partitions.unreconciled[partition, peer] = max(own, horizons[position])
            if position % PARTITIONS_PER_WALK == 0:
                yield Pause()
        yield Pause()
        now = replica.now()
    return differing, dict(zip(partitions, horizons, strict=False)), are_all_equal
