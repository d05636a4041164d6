"""Rounds of comparison: replicas that differ without anybody knowing find it out here.

For each pair of replicas of a partition one of the two begins: the lower id for even partitions,
the higher one for odd. An idle, equal pair costs 16 bytes a partition.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from dstash.cluster.repair.exchange import Exchanged, Exchanging, exchange, exchange_large
from dstash.cluster.replication.handlers import BUSY, kind_of, pack_partitions, unpack_partitions
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.cluster.replication.transfer import (
    ask,
    split_digests,
    split_flags,
    split_horizons,
)
from dstash.errors import Busy, ClockSkew, CorruptRecord, DiskFull, DStashError
from dstash.limits import PARTITIONS
from dstash.store.digest import DigestKind
from dstash.version import Stamp
from dstash.wire.replication import DigestsReply, DigestsRequest

Comparing = Generator[Effect, Any, None]
#: What it returns are the partitions of which records have to wait.
Waiting = Generator[Effect, Any, set[int]]

_BATCH: Final = 512
#: A partition of more records than this is compared by buckets first.
_LARGE: Final = 4000
#: A partition that never rests is compared all the same after this time (milliseconds).
_OVERDUE_MS: Final = 30_000
#: Pauses (milliseconds) before partitions are compared again whose records had to wait.
_RETRIES_MS: Final = (1000, 2000, 4000)
#: Records of small partitions that are compared together.
_TOGETHER: Final = 20_000
#: Refusals that concern some records only. The other partitions must not wait for them.
_REFUSALS: Final = (Busy, ClockSkew, CorruptRecord, DiskFull)


def compare_all(replica: Replica) -> Comparing:
    """Compare every partition with every other live replica of it, once.

    Partitions with records that had to wait for an agreement on a horizon are compared again soon:
    whatever the intervals of the two are, neither must keep out the other for good.
    """
    _forget_the_gone(replica)
    waiting: dict[str, set[int]] = {}
    for other in sorted(replica.view().members):
        if other != replica.me and replica.is_alive(other):
            # It may go away, or move on to another epoch: the next round sees.
            with suppress(DStashError):
                waiting[other] = yield from compare_with(replica, other)
    for pause in _RETRIES_MS:
        waiting = {other: partitions for other, partitions in waiting.items() if partitions}
        if not waiting:
            return
        yield Pause(pause)
        for other, partitions in waiting.items():
            shared = [one for one in partitions if _begins_here(replica, other, one)]
            waiting[other] = set()
            with suppress(DStashError):
                waiting[other] = (yield from compare(replica, other, sorted(shared))).waiting


def compare_with(replica: Replica, other: str) -> Waiting:
    """Compare the partitions shared with one peer, and heal those that differ.

    Returns:
        the partitions of which records have to wait until an agreement on a horizon ends.
    """
    shared = [
        partition for partition in range(PARTITIONS) if _begins_here(replica, other, partition)
    ]
    replica.differing.keep(other, shared)
    quiet, overdue = _due(replica, other, shared)
    exchanged = yield from compare(replica, other, quiet, skip_busy=True)
    exchanged.add((yield from compare(replica, other, overdue)))
    return exchanged.waiting


def compare(
    replica: Replica, other: str, partitions: Sequence[int], *, skip_busy: bool = False
) -> Exchanging:
    """Compare partitions (ascending) with one peer, and heal those that differ.

    Args:
        skip_busy: not those that the other peer finds busy.
    """
    exchanged = Exchanged()
    for begin in range(0, len(partitions), _BATCH):
        question = DigestsRequest(
            pack_partitions(partitions[begin : begin + _BATCH]),
            skip_busy,
            kind=DigestKind.CONTENT,
        )
        differing, horizons = yield from _differing(replica, other, question)
        exchanged.add((yield from heal(replica, other, differing, horizons)))
    return exchanged


def _forget_the_gone(replica: Replica) -> None:
    """Forget differences with peers that are gone: those are found again when they are back."""
    for other in replica.differing.others():
        if other not in replica.view().members or not replica.is_alive(other):
            replica.differing.keep(other, ())


def _due(replica: Replica, other: str, partitions: list[int]) -> tuple[list[int], list[int]]:
    """Return the partitions at rest, and those that have not been compared for long."""
    local_partitions, now = replica.local_partitions, replica.now()
    compared_at = local_partitions.compared_at(other, now)
    overdue = [one for one in partitions if now - compared_at[one] > _OVERDUE_MS]
    quiet = [one for one in partitions if not local_partitions.is_busy(one, now)]
    return sorted(set(quiet).difference(overdue)), overdue


def heal(
    replica: Replica,
    other: str,
    differing: Iterable[tuple[int, int]],
    horizons: Mapping[int, Stamp],
) -> Exchanging:
    """Make partitions equal; each comes with the number of records that it holds.

    Records that are refused are left to the next round, or to a later try of this one.
    """
    exchanged = Exchanged()
    small: list[int] = []
    weight = 0
    for partition, records in differing:
        if records > _LARGE:
            task = exchange_large(replica, partition, other, horizons)
            exchanged.add((yield from _refusable(task, [partition])))
            continue
        small.append(partition)
        weight += records
        if weight > _TOGETHER:
            task = exchange(replica, small, other, horizons)
            exchanged.add((yield from _refusable(task, small)))
            small, weight = [], 0
    if small:
        exchanged.add((yield from _refusable(exchange(replica, small, other, horizons), small)))
    return exchanged


def _refusable(exchanging: Exchanging, partitions: Iterable[int]) -> Exchanging:
    """Run an exchange; a refusal of some records must not keep other partitions from theirs."""
    try:
        return (yield from exchanging)
    except _REFUSALS:
        return Exchanged(refused=set(partitions))


def _begins_here(replica: Replica, other: str, partition: int) -> bool:
    lower = replica.me < other
    begins = lower if partition % 2 == 0 else not lower
    return (
        begins
        # Not with a peer that is being filled: that keeps to a rate, and can be paused.
        and replica.is_reader(replica.me, partition)
        and replica.is_reader(other, partition)
    )


def _differing(
    replica: Replica, other: str, question: DigestsRequest
) -> Generator[Effect, Any, tuple[list[tuple[int, int]], dict[int, Stamp]]]:
    """Return the partitions that differ, each with its size, and the horizons of the other peer."""
    local_partitions = replica.local_partitions
    compared_at = local_partitions.compared_at(other, replica.now())
    partitions = unpack_partitions(question.partitions)
    answer = yield from ask(other, question, DigestsReply)
    theirs = split_digests(answer.digests, len(partitions))
    flags = split_flags(answer.busy, len(partitions))
    horizons = split_horizons(answer.horizons, len(partitions))
    differing: list[tuple[int, int]] = []
    for place, (partition, digest) in enumerate(zip(partitions, theirs, strict=True)):
        if flags[place] == BUSY:
            continue
        mine = yield from local_partitions.digest(partition, kind=kind_of(answer.kind))
        compared_at[partition] = replica.now()
        replica.compared += 1
        replica.differing.note(partition, other, replica.now(), differs=mine != digest)
        if mine != digest:
            replica.differed += 1
            there = int.from_bytes(answer.counts[4 * place : 4 * place + 4], "big")
            differing.append((partition, max(there, local_partitions.count(partition))))
            if horizons and horizons[place] != (own := local_partitions.horizons[partition]):
                local_partitions.unreconciled[partition, other] = max(own, horizons[place])
        if place % 64 == 0:
            yield Pause()
    return differing, dict(zip(partitions, horizons, strict=False))
