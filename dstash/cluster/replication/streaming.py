"""Bringing a peer the data it should have: after a change of placement, or a lost store.

A partition counts as filled when this peer has everything that N - W + 1 of its current replicas
have. An acked write is on W of N replicas, so any N - W + 1 of them include one that has it. The
sources answer under the epoch of the change: from then on they refuse writes of the old one, and
``Settle`` makes what they accepted before part of their answer.

This peer may have held the partition before, and missed what happened since: what it has from up
to a source's horizon, and the source has not, was deleted and buried meanwhile. It is dropped, and
the horizon taken over, so that it cannot come back by another way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, NamedTuple

from dstash.cluster.replication.handlers import CORRUPT, kind_of, pack_partitions
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge, Pause, Settle
from dstash.cluster.replication.throttle import Throttle
from dstash.cluster.replication.transfer import (
    ask,
    copy,
    pull_newer,
    split_counts,
    split_digests,
    split_flags,
    split_horizons,
)
from dstash.errors import DStashError
from dstash.limits import MIB
from dstash.store.digest import EMPTY, DigestKind
from dstash.version import Stamp
from dstash.wire.replication import DigestsReply, DigestsRequest

Streaming = Generator[Effect, Any, None]

#: Partitions that are filled together, at least, at first, and at most.
_LEAST: Final = 8
_FIRST: Final = 32
_MOST: Final = 256
#: If all fillers moved less than this meanwhile (effort), they are more the next time, for each
#: time has its questions; if more, fewer: what is stopped in the middle has to be compared later.
_LITTLE: Final = 2 * MIB
_MUCH: Final = 8 * MIB
_RETRY_MS: Final = 300


class _Streamer(NamedTuple):
    """One of the tasks that fill a peer; ``done`` is called with each partition that is filled."""

    replica: Replica
    throttle: Throttle
    done: Callable[[int], None]


def sources(replica: Replica, partition: int) -> tuple[list[str], int]:
    """Return the peers that may give a partition, and how many of them are needed."""
    view = replica.view()
    owners = view.readers[partition]
    synced = [peer for peer in owners if view.members[peer].synced]
    others = [peer for peer in synced if peer != replica.me]
    alive_first = sorted(others, key=lambda peer: peer not in view.alive)
    needed = view.votes_needed(owners)
    if not needed:  # the loss of all is accepted: their stores count as they are, taken together
        there = [peer for peer in owners if peer != replica.me and peer in view.alive]
        return there, len(there)
    return alive_first, needed - (replica.me in synced)


def fill(replica: Replica, partitions: Sequence[int], done: Callable[[int], None]) -> Streaming:
    """Fill partitions, however long it takes; ``done`` is called with each that is complete."""
    streamer = _Streamer(replica, Throttle(replica), done)
    waiting, size = list(partitions), _FIRST
    yield Settle()  # what was dropped here before must not count as held
    while waiting:
        left: list[int] = []
        begin = 0
        while begin < len(waiting):
            before = replica.progress.effort
            left += yield from _stream_some(streamer, waiting[begin : begin + size])
            begin += size
            size = _adapted(size, replica.progress.effort - before)
        waiting = left
        if waiting:
            yield Pause(_RETRY_MS)


def _adapted(size: int, took: int) -> int:
    """Return how many partitions to fill together, by the effort that the last ones took."""
    if took > _MUCH:
        return max(_LEAST, size // 2)
    return min(_MOST, 2 * size) if took < _LITTLE else size


def _stream_some(
    streamer: _Streamer, partitions: Sequence[int]
) -> Generator[Effect, Any, list[int]]:
    """Fill what can be filled; returns the rest."""
    left: list[int] = []
    for chosen, members in _by_sources(streamer.replica, partitions).items():
        if chosen is None:
            left += members
            continue
        try:
            left += yield from _stream_from(streamer, chosen, members)
        except DStashError:
            left += members  # a source went away: another one, or the same again, later
    return left


def _by_sources(
    replica: Replica, partitions: Sequence[int]
) -> dict[tuple[str, ...] | None, list[int]]:
    groups: dict[tuple[str, ...] | None, list[int]] = {}
    for partition in partitions:
        able, needed = sources(replica, partition)
        chosen = tuple(able[:needed]) if len(able) >= needed else None
        groups.setdefault(chosen, []).append(partition)
    return groups


def _stream_from(
    streamer: _Streamer, chosen: Sequence[str], partitions: list[int]
) -> Generator[Effect, Any, list[int]]:
    """Take from each chosen source what is not here yet; all of them together are enough.

    Returns the partitions of which one has damaged records, and so less than it should: they are
    for later, when it has mended them.
    """
    replica = streamer.replica
    horizons: dict[int, Stamp] = {}
    corrupt: set[int] = set()
    for source in chosen:
        empty = yield from replica.local_partitions.empty_among(sorted(partitions))
        beyond = yield from _copy_all(streamer, empty, source)
        others = sorted(set(partitions).difference(empty))
        beyond |= yield from _compare(streamer, others, source, corrupt)
        for partition, stamp in beyond.items():
            horizons[partition] = max(stamp, horizons.get(partition, 0))
    # A horizon from a wrong clock must not come in with the data: see ``answering.floor``.
    latest = replica.clock.latest()
    whole = {
        partition: min(stamp, latest)
        for partition, stamp in horizons.items()
        if partition not in corrupt
    }
    if whole:
        yield Merge(marks=[replica.local_partitions.adopt(whole)])
    for partition in partitions:
        if partition not in corrupt:
            streamer.done(partition)
    return sorted(corrupt)


def _copy_all(
    streamer: _Streamer, partitions: list[int], source: str
) -> Generator[Effect, Any, dict[int, Stamp]]:
    """Copy partitions of which nothing is here, uncompared; returns horizons beyond this peer's."""
    if not partitions:
        return {}
    question = DigestsRequest(pack_partitions(partitions), skip_all=True)
    answer = yield from ask(source, question, DigestsReply)
    counts = split_counts(answer.counts, len(partitions))
    theirs = split_digests(answer.digests, len(partitions))
    flags = split_flags(answer.busy, len(partitions))
    rows = zip(partitions, counts, theirs, flags, strict=True)
    # A peer that worked out digests all the same may not know the count of what changes meanwhile.
    there = [one for one, count, digest, flag in rows if count or digest != EMPTY or flag]
    if there:
        yield from copy(streamer.replica, there, source, streamer.throttle)
    return _beyond(streamer.replica, partitions, answer.horizons)


def _compare(
    streamer: _Streamer, partitions: list[int], source: str, corrupt: set[int]
) -> Generator[Effect, Any, dict[int, Stamp]]:
    """Take what is missing of partitions that are here already; returns horizons likewise.

    Args:
        damaged: takes those of which the source has damaged records.
    """
    if not partitions:
        return {}
    replica = streamer.replica
    question = DigestsRequest(pack_partitions(partitions), kind=DigestKind.CONTENT)
    answer = yield from ask(source, question, DigestsReply)
    theirs = split_digests(answer.digests, len(partitions))
    beyond = _beyond(replica, partitions, answer.horizons)
    flags = split_flags(answer.busy, len(partitions))
    corrupt.update(
        partition for partition, flag in zip(partitions, flags, strict=True) if flag == CORRUPT
    )
    differing: list[int] = []
    for partition, digest in zip(partitions, theirs, strict=True):
        mine = yield from replica.local_partitions.digest(partition, kind=kind_of(answer.kind))
        if digest != mine and (digest != EMPTY or partition in beyond):
            differing.append(partition)
    if differing:
        yield from pull_newer(replica, differing, source, beyond, streamer.throttle)
    return beyond


def _beyond(replica: Replica, partitions: Sequence[int], packed: bytes) -> dict[int, Stamp]:
    """Return where a source knows the whole truth up to a later stamp than this peer does."""
    stamps = split_horizons(packed, len(partitions))
    return {
        partition: stamp
        for partition, stamp in zip(partitions, stamps, strict=False)  # there may be none
        if stamp > replica.local_partitions.horizons[partition]
    }
