"""Rounds of comparison: replicas that differ without anybody knowing find it out here.

For each pair of replicas of a partition one of the two begins: the lower id for even partitions,
the higher one for odd. An idle, equal pair costs 16 bytes a partition.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import Any, Final

from dstash.cluster.answering import BUSY, kind_of, pack_partitions, unpack_partitions
from dstash.cluster.replica import Replica
from dstash.cluster.syncing import (
    ask,
    exchange,
    exchange_large,
    split_digests,
    split_flags,
    split_horizons,
)
from dstash.cluster.tasks import Effect, Pause
from dstash.errors import Busy, ClockSkew, CorruptRecord, DiskFull, DStashError
from dstash.limits import PARTITIONS
from dstash.store.digest import DigestKind
from dstash.wire.replication import AskDigests, DigestsAre

Comparing = Generator[Effect, Any, None]

_BATCH: Final = 512
#: A partition of more records than this is compared by buckets first.
_LARGE: Final = 4000
#: A partition that never rests is compared all the same after this time (milliseconds).
_OVERDUE_MS: Final = 40_000
#: Records of small partitions that are compared together.
_TOGETHER: Final = 20_000
#: Refusals that concern some records only. The other partitions must not wait for them.
_REFUSALS: Final = (Busy, ClockSkew, CorruptRecord, DiskFull)


def compare_all(replica: Replica) -> Comparing:
    """Compare every partition with every other live replica of it, once."""
    for other in sorted(replica.view().members):
        if other != replica.me and replica.is_alive(other):
            try:
                yield from compare_with(replica, other)
            except DStashError:
                continue  # it went away, or moved on to another epoch: the next round sees


def compare_with(replica: Replica, other: str) -> Comparing:
    """Compare the partitions shared with one peer, and heal those that differ."""
    shared = [
        partition for partition in range(PARTITIONS) if _begins_here(replica, other, partition)
    ]
    quiet, overdue = _due(replica, shared)
    for partitions, skip_busy in ((quiet, True), (overdue, False)):
        for begin in range(0, len(partitions), _BATCH):
            question = AskDigests(
                pack_partitions(partitions[begin : begin + _BATCH]),
                skip_busy,
                kind=DigestKind.CONTENT,
            )
            differing = yield from _differing(replica, other, question)
            yield from heal(replica, other, differing)


def _due(replica: Replica, partitions: list[int]) -> tuple[list[int], list[int]]:
    """Return the partitions at rest, and those that never rest and have waited for long."""
    holdings, now = replica.holdings, replica.now()
    busy = {partition for partition in partitions if holdings.is_busy(partition, now)}
    quiet = [partition for partition in partitions if partition not in busy]
    overdue = [one for one in sorted(busy) if now - holdings.compared_at[one] > _OVERDUE_MS]
    return quiet, overdue


def heal(replica: Replica, other: str, differing: Iterable[tuple[int, int]]) -> Comparing:
    """Make partitions equal; each comes with the number of records that it holds.

    A partition whose records are refused is left to the next round.
    """
    small: list[int] = []
    weight = 0
    for partition, records in differing:
        if records > _LARGE:
            with suppress(*_REFUSALS):
                yield from exchange_large(replica, partition, other)
            continue
        small.append(partition)
        weight += records
        if weight > _TOGETHER:
            with suppress(*_REFUSALS):
                yield from exchange(replica, small, other)
            small, weight = [], 0
    if small:
        with suppress(*_REFUSALS):
            yield from exchange(replica, small, other)


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
    replica: Replica, other: str, question: AskDigests
) -> Generator[Effect, Any, list[tuple[int, int]]]:
    holdings = replica.holdings
    partitions = unpack_partitions(question.partitions)
    answer = yield from ask(other, question, DigestsAre)
    theirs = split_digests(answer.digests, len(partitions))
    flags = split_flags(answer.busy, len(partitions))
    horizons = split_horizons(answer.horizons, len(partitions))
    differing: list[tuple[int, int]] = []
    for place, (partition, digest) in enumerate(zip(partitions, theirs, strict=True)):
        if flags[place] == BUSY:
            continue
        mine = yield from holdings.digest(partition, kind=kind_of(answer.kind))
        holdings.compared_at[partition] = replica.now()
        replica.compared += 1
        if mine != digest:
            replica.differed += 1
            there = int.from_bytes(answer.counts[4 * place : 4 * place + 4], "big")
            differing.append((partition, max(there, holdings.count(partition))))
            if horizons and horizons[place] != (own := holdings.horizons[partition]):
                holdings.uneven[partition, other] = max(own, horizons[place])
        if place % 64 == 0:
            yield Pause()
    return differing
