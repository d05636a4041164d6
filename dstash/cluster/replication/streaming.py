"""Streaming: a peer copies the partitions that it gains, or has lost, from their replicas.

A partition is streamed when this peer has every record that N - W + 1 of its current replicas
have. An acked write is on W of N replicas, so any N - W + 1 of them include a replica that has it.
The sources answer under the epoch of the topology change: from then on they refuse writes of the
old epoch, and ``Settle`` includes the writes that they accepted before.

This peer may have held the partition earlier and missed deletes since. A record stamped up to the
source's horizon that the source lacks was deleted and reaped in the meantime. Such a record is
dropped, and the horizon is adopted, so that no other replica can bring it back.

A record that is stamped ahead of every clock is taken if a quorum of the replicas holds it (see
``future/survey``): it can be the last acked write.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from dstash.cluster.replication.future.survey import take_streamed
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge, Pause, Settle
from dstash.cluster.replication.throttle import Throttle
from dstash.cluster.replication.transfer import Reaped, ask, copy, pull_newer
from dstash.errors import CorruptRecord, DStashError, ProtocolError
from dstash.limits import MIB
from dstash.store.digest import EMPTY, DigestKind, kind_of
from dstash.version import Stamp
from dstash.wire import codec
from dstash.wire.packing import (
    CORRUPT,
    pack_partitions,
    split_counts,
    split_digests,
    split_flags,
    split_horizons,
)
from dstash.wire.registers import unpack_numbers
from dstash.wire.registers.consensus import PromisesReply, PromisesRequest
from dstash.wire.replication import DigestsReply, DigestsRequest

Streaming = Generator[Effect, Any, None]

#: Partitions streamed as one batch: the smallest, the first, and the largest number.
_MIN_BATCH: Final = 8
_FIRST_BATCH: Final = 32
_MAX_BATCH: Final = 256
#: A batch during which less than this moved (effort, over all tasks) is followed by a larger one,
#: because each batch costs requests. After more than the second value the next one is smaller,
#: because a batch that is interrupted has to be compared later.
_SMALL_EFFORT: Final = 2 * MIB
_LARGE_EFFORT: Final = 8 * MIB
_RETRY_MS: Final = 300


class _Streamer(NamedTuple):
    """One streaming task of a peer; calls ``done`` with each partition that is complete.

    ``registers``: whether it streams registers only. ``avoided``: by partition, the sources that
    had corrupt records. Other sources come first: it can take long until these are repaired.
    """

    replica: Replica
    throttle: Throttle
    done: Callable[[int], None]
    registers: bool
    avoided: dict[int, set[str]]

    def avoid(self, source: str, partitions: Iterable[int]) -> None:
        """Take note that a source has corrupt records in some of these partitions."""
        for partition in partitions:
            self.avoided.setdefault(partition, set()).add(source)


def sources(replica: Replica, partition: int) -> tuple[list[str], int]:
    """Return the peers that can be sources of a partition, and how many of them are needed."""
    view = replica.view()
    owners = view.readers[partition]
    synced = [peer for peer in owners if view.members[peer].synced]
    candidates = [peer for peer in synced if peer != replica.me]
    alive_first = sorted(candidates, key=lambda peer: peer not in view.alive)
    needed = view.votes_needed(owners)
    if not needed:  # the loss of all is accepted: the union of their stores counts as the data
        live = [peer for peer in owners if peer != replica.me and peer in view.alive]
        return live, len(live)
    return alive_first, needed - (replica.me in synced)


def stream(
    replica: Replica,
    partitions: Sequence[int],
    done: Callable[[int], None],
    *,
    registers: bool = False,
) -> Streaming:
    """Stream partitions until all are complete; call ``done`` with each complete partition.

    Args:
        replica: of this peer.
        partitions: to stream.
        done: called with each partition that is complete.
        registers: whether to stream only the registers of partitions that have been streamed, and
            the promises for them, because their old replicas have served them until now (T2).
    """
    throttle = Throttle(replica, lambda: replica.streaming_rate)
    streamer = _Streamer(replica, throttle, done, registers, {})
    # Registers are not served meanwhile, and few of them are missing.
    waiting, size = list(partitions), _MAX_BATCH if registers else _FIRST_BATCH
    yield Settle()  # a pending drop must not count as held data
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
    """Return the size of the next batch, given the effort of the last one."""
    if took > _LARGE_EFFORT:
        return max(_MIN_BATCH, size // 2)
    return min(_MAX_BATCH, 2 * size) if took < _SMALL_EFFORT else size


def _stream_some(
    streamer: _Streamer, partitions: Sequence[int]
) -> Generator[Effect, Any, list[int]]:
    """Stream the partitions that can be streamed now; returns the rest."""
    left: list[int] = []
    for chosen, members in _by_sources(streamer, partitions).items():
        if chosen is None:
            left += members
            continue
        try:
            left += yield from _stream_from(streamer, chosen, members)
        except DStashError:
            left += members  # a source became unavailable: retry later, perhaps from another source
    return left


def _by_sources(
    streamer: _Streamer, partitions: Sequence[int]
) -> dict[tuple[str, ...] | None, list[int]]:
    groups: dict[tuple[str, ...] | None, list[int]] = {}
    for partition in partitions:
        able, needed = sources(streamer.replica, partition)
        if partition in streamer.avoided:
            able.sort(key=streamer.avoided[partition].__contains__)
        chosen = tuple(able[:needed]) if len(able) >= needed else None
        groups.setdefault(chosen, []).append(partition)
    return groups


def _stream_from(
    streamer: _Streamer, chosen: Sequence[str], partitions: list[int]
) -> Generator[Effect, Any, list[int]]:
    """Stream missing records from every chosen source; together they have every acked write.

    Returns the partitions of which a source has corrupt records, so that its data is incomplete.
    They are retried with other sources, or after the source has repaired them.
    """
    replica = streamer.replica
    horizons: dict[int, Stamp] = {}
    floors: dict[int, Stamp] = {}
    corrupt: set[int] = set()
    has_registers = replica.view().topology.registers
    if has_registers:  # own promises must not refuse records
        yield Merge(resting=partitions)
    for source in chosen:
        reaped: dict[int, Stamp] = {}
        if has_registers:
            reaped = yield from _take_promises(source, partitions)
        for partition, stamp in reaped.items():
            floors[partition] = max(stamp, floors.get(partition, 0))
        try:
            beyond = yield from _pull(streamer, partitions, source, corrupt, reaped)
        except CorruptRecord:
            streamer.avoid(source, partitions)
            raise
        for partition, stamp in beyond.items():
            horizons[partition] = max(stamp, horizons.get(partition, 0))
    # A horizon from a wrong clock must not come with the data: see ``handlers.floor``. Rounds of
    # registers have to exceed it nevertheless.
    latest = replica.clock.latest()
    whole = {
        partition: min(stamp, latest)
        for partition, stamp in horizons.items()
        if partition not in corrupt
    }
    local_partitions, marks = replica.local_partitions, []
    if whole:
        marks.append(local_partitions.adopt(whole))
    above = {
        partition: stamp
        for partition, stamp in floors.items()
        if stamp > local_partitions.horizons[partition]
    }
    marks += local_partitions.stream_register_floors(above, replica.view().epoch)
    if marks:
        yield Merge(marks=marks)
    for partition in partitions:
        if partition not in corrupt:
            streamer.done(partition)
    return sorted(corrupt)


def _pull(
    streamer: _Streamer,
    partitions: list[int],
    source: str,
    corrupt: set[int],
    floors: Mapping[int, Stamp],
) -> Generator[Effect, Any, dict[int, Stamp]]:
    """Pull what a source has and this peer lacks.

    Args:
        streamer: the task.
        partitions: to stream.
        source: the peer.
        corrupt: receives the partitions of which the source has corrupt records.
        floors: by partition, the highest horizon that the source has had.

    Returns:
        the source's horizons that are later than this peer's, by partition.

    Raises:
        CorruptRecord: the source has a corrupt record.
    """
    if streamer.registers:
        yield from _pull_registers(streamer, partitions, source, floors)
        return {}
    empty = yield from streamer.replica.local_partitions.empty_among(sorted(partitions))
    beyond = yield from _copy_all(streamer, empty, source)
    held = sorted(set(partitions).difference(empty))
    found: set[int] = set()
    beyond |= yield from _compare(streamer, held, source, found, floors)
    streamer.avoid(source, found)
    corrupt |= found
    return beyond


def _take_promises(source: str, partitions: list[int]) -> Generator[Effect, Any, dict[int, Stamp]]:
    """Take the promises for registers of a source, before its records (T2).

    Returns by partition the highest horizon that the source has had; none of an earlier version.

    A round that it has promised in an earlier epoch is among these promises, or the source holds a
    register of that round or a later one, which follows.
    """
    requested, after = sorted(partitions), b""
    packed = pack_partitions(requested)
    floors: dict[int, Stamp] = {}
    while True:
        reply = yield from ask(source, PromisesRequest(packed, after), PromisesReply)
        keys = codec.unpack_blobs(reply.keys)
        rounds = unpack_numbers(reply.rounds)
        if len(rounds) != len(keys):
            raise ProtocolError(f"{source} sent {len(rounds)} rounds for {len(keys)} registers")
        if reply.floors:
            stamps = split_horizons(reply.floors, len(requested))
            floors = dict(zip(requested, stamps, strict=False))
        if keys:
            yield Merge(earlier=list(zip(keys, rounds, strict=True)))
        after = reply.after
        if not after:
            return floors


def _copy_all(
    streamer: _Streamer, partitions: list[int], source: str
) -> Generator[Effect, Any, dict[int, Stamp]]:
    """Copy partitions that are empty here; returns the source's horizons that are later."""
    if not partitions:
        return {}
    request = DigestsRequest(pack_partitions(partitions), skip_all=True)
    reply = yield from ask(source, request, DigestsReply)
    counts = split_counts(reply.counts, len(partitions))
    digests = split_digests(reply.digests, len(partitions))
    flags = split_flags(reply.busy, len(partitions))
    rows = zip(partitions, counts, digests, flags, strict=True)
    # A source that computed digests may lack the count of a partition that is changing.
    not_empty = [
        partition for partition, count, digest, flag in rows if count or digest != EMPTY or flag
    ]
    if not_empty:
        replica, throttle = streamer.replica, streamer.throttle
        yield from copy(replica, not_empty, source, throttle, partial(take_streamed, replica))
    return _beyond(streamer.replica, partitions, reply.horizons)


def _compare(
    streamer: _Streamer,
    partitions: list[int],
    source: str,
    corrupt: set[int],
    floors: Mapping[int, Stamp],
) -> Generator[Effect, Any, dict[int, Stamp]]:
    """Pull missing records of partitions that have records here; returns horizons likewise.

    Args:
        corrupt: receives the partitions of which the source has corrupt records.
        floors: by partition, the highest horizon that the source has had.
    """
    if not partitions:
        return {}
    replica = streamer.replica
    request = DigestsRequest(pack_partitions(partitions), kind=DigestKind.CONTENT)
    reply = yield from ask(source, request, DigestsReply)
    digests = split_digests(reply.digests, len(partitions))
    beyond = _beyond(replica, partitions, reply.horizons)
    flags = split_flags(reply.busy, len(partitions))
    corrupt.update(
        partition for partition, flag in zip(partitions, flags, strict=True) if flag == CORRUPT
    )
    differing: list[int] = []
    own_digests, kind = replica.local_partitions.digests, kind_of(reply.kind)
    for partition, digest in zip(partitions, digests, strict=True):
        own_digest = yield from own_digests.of(partition, kind=kind)
        if digest != own_digest and (digest != EMPTY or partition in beyond):
            differing.append(partition)
    if differing:
        take_in = partial(take_streamed, replica)
        reaped = Reaped(beyond, _later(replica, floors))
        yield from pull_newer(replica, differing, source, reaped, streamer.throttle, take_in)
    return beyond


def _pull_registers(
    streamer: _Streamer, partitions: Sequence[int], source: str, floors: Mapping[int, Stamp]
) -> Generator[Effect, Any, None]:
    """Pull the registers that are newer on a source, and drop those that it has reaped."""
    replica = streamer.replica
    yield from pull_newer(
        replica,
        sorted(partitions),
        source,
        Reaped({}, _later(replica, floors)),
        streamer.throttle,
        partial(take_streamed, replica),
        registers=True,
    )


def _later(replica: Replica, floors: Mapping[int, Stamp]) -> dict[int, Stamp]:
    """Return the highest horizons of a source that are above those that this peer has had."""
    own = replica.local_partitions.reaped
    return {partition: stamp for partition, stamp in floors.items() if stamp > own(partition)}


def _beyond(replica: Replica, partitions: Sequence[int], packed: bytes) -> dict[int, Stamp]:
    """Return the horizons of a source, by partition, that are later than this peer's."""
    stamps = split_horizons(packed, len(partitions))
    return {
        partition: stamp
        for partition, stamp in zip(partitions, stamps, strict=False)  # may be empty
        if stamp > replica.local_partitions.horizons[partition]
    }
