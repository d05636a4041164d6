"""Handlers for the requests of other peers, as tasks that work in slices."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Generator, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, Final

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.replica import RECORD_BYTES
from dstash.cluster.replication.tasks import Effect, Merge, Pause, Settle
from dstash.cluster.topology.life import Life
from dstash.errors import CorruptRecord, DStashError, NotReady, ProtocolError
from dstash.store.digest import BUCKETS, DIGEST_BYTES, EMPTY, DigestKind, bucket_of, kind_of
from dstash.store.record import ABSENT, CHECKSUM_END, is_sound, partition_range, version_of
from dstash.store.register.ballot import unpack_promise
from dstash.version import stamp_milliseconds
from dstash.wire import codec
from dstash.wire.messages import Records
from dstash.wire.packing import (
    BUSY,
    CORRUPT,
    PAGE_BYTES,
    check_partition,
    pack_partitions,
    unpack_partitions,
)
from dstash.wire.registers.consensus import PromisesReply, PromisesRequest
from dstash.wire.replication import (
    BucketsReply,
    BucketsRequest,
    CopyReply,
    CopyRequest,
    DigestsReply,
    DigestsRequest,
    FloorReleased,
    FloorRequest,
    HorizonReply,
    Pull,
    ReleaseFloor,
    SeenReply,
    SeenRequest,
    SetHorizon,
    VersionsReply,
    VersionsRequest,
)
from dstash.wire.shapes import Frame, Message

PAGE_KEYS: Final = 4000
_MAX_COPY_SLICE: Final = 32

#: Promises of one reply, at most.
_MAX_PROMISES: Final = 2000

_KEY: Final = itemgetter(0)
_RECORD: Final = itemgetter(1)

#: Partitions whose digests are collected or compared before other work may run: known digests, and
#: those that have to be looked for one by one.
PARTITIONS_PER_STEP: Final = 256
PARTITIONS_PER_WALK: Final = 64

#: Digests, flags, counts and horizons of some partitions.
_Part = tuple[bytes, bytes, bytes, bytes]

Answering = Generator[Effect, Any, Message]


def digests(local_partitions: LocalPartitions, request: DigestsRequest, now: int) -> Answering:
    """Reply with a digest per partition."""
    kind = kind_of(request.kind)
    # The reply must include writes accepted under an older epoch: see ``streaming``.
    yield Settle()
    if request.skip_all:
        return (yield from _outlines(local_partitions, request))
    recent = local_partitions.recent_replies
    if (reply := recent.own(request, now)) is not None:
        return reply
    partitions = unpack_partitions(request.partitions)
    are_all_known, since = True, local_partitions.unchanged_since(now)
    parts: list[_Part] = [_part(local_partitions, (), ())]
    for begin in range(0, len(partitions), PARTITIONS_PER_STEP):
        some = partitions[begin : begin + PARTITIONS_PER_STEP]
        quiet = local_partitions.quiet_among(some, now) if request.skip_busy else some
        known = local_partitions.digests.known(some, kind)
        if len(quiet) == len(some) and None not in known:  # nearly always, in an idle cluster
            parts.append(_part(local_partitions, some, known))
        else:
            are_all_known = False
            for place, partition in enumerate(some, 1):
                is_quiet, digest = partition in quiet, EMPTY
                if is_quiet:
                    digest = yield from local_partitions.digests.of(partition, kind=kind)
                parts.append(_part(local_partitions, [partition], [digest], skip=not is_quiet))
                if place % PARTITIONS_PER_WALK == 0:
                    yield Pause()
        if len(some) == PARTITIONS_PER_STEP:
            yield Pause()
    found, busy, counts, horizons = map(b"".join, zip(*parts, strict=True))
    reply = DigestsReply(found, busy, counts, horizons, kind)
    if are_all_known:
        recent.note_own(request, reply, since)
    return reply


def _part(
    local_partitions: LocalPartitions,
    partitions: Sequence[int],
    digests: Sequence[Any],
    *,
    skip: bool = False,
) -> _Part:
    """Return digests, flags, counts and horizons of partitions, packed for a reply."""
    size, corrupt = len(partitions), local_partitions.corruption.among(partitions)
    flags = bytes([BUSY if skip else 0]) * size
    if corrupt and not skip:
        flags = bytes(CORRUPT if partition in corrupt else 0 for partition in partitions)
    counts = map(local_partitions.digests.count, partitions)
    horizons = map(local_partitions.horizons.__getitem__, partitions)
    return (
        b"".join(digests),
        flags,
        struct.pack(f">{size}I", *counts),
        struct.pack(f">{size}Q", *horizons),
    )


def _outlines(local_partitions: LocalPartitions, request: DigestsRequest) -> Answering:
    """Reply with horizons and, instead of counts, 1 for a partition with records."""
    partitions = unpack_partitions(request.partitions)
    empty = set((yield from local_partitions.empty_among(sorted(partitions))))
    counts = [int(partition not in empty).to_bytes(4, "big") for partition in partitions]
    horizons = [local_partitions.horizons[partition].to_bytes(8, "big") for partition in partitions]
    zeros = bytes(len(partitions))
    return DigestsReply(DIGEST_BYTES * zeros, zeros, b"".join(counts), b"".join(horizons))


def buckets(local_partitions: LocalPartitions, request: BucketsRequest, now: int) -> Answering:
    """Reply with a digest per bucket."""
    check_partition(request.partition)
    yield Settle()
    kind = kind_of(request.kind)
    found = yield from local_partitions.digests.buckets(request.partition, kind)
    return BucketsReply(found, kind)


def versions(local_partitions: LocalPartitions, request: VersionsRequest, now: int) -> Answering:
    """Reply with a page of keys and versions; the version of a corrupt record is all zero."""
    partitions = unpack_partitions(request.partitions)
    if not request.after:
        yield Settle()
    wanted = set(request.buckets or range(BUCKETS))
    walk = local_partitions.walk_registers if request.registers else local_partitions.walk_all
    keys: list[bytes] = []
    found: list[bytes] = []
    checksums: list[bytes] = []
    after = request.after
    while len(keys) < PAGE_KEYS:
        entries = walk(partitions, after)
        for storage_key, record in local_partitions.drops.present(entries):
            if bucket_of(storage_key) not in wanted:
                continue
            keys.append(storage_key)
            if is_sound(storage_key, record):
                found.append(version_of(record))
                checksums.append(record[:CHECKSUM_END])
            else:
                found.append(ABSENT)
                checksums.append(bytes(CHECKSUM_END))
                local_partitions.corruption.report([storage_key])
        after = entries[-1][0] if len(entries) == local_partitions.slice_records else b""
        if not after:
            break
        yield Pause()
    wanted_checksums = b"".join(checksums) if request.checksums else b""
    return VersionsReply(after, b"".join(found), Frame(codec.pack_blobs(keys)), wanted_checksums)


def copy(local_partitions: LocalPartitions, request: CopyRequest, now: int) -> Answering:
    """Reply with a page of whole records.

    Raises:
        CorruptRecord: a record is corrupt. A page without it would claim that it does not exist.
    """
    partitions = unpack_partitions(request.partitions)
    if not request.after:
        yield Settle()
    page = _CopyPage(request.after, min(PAGE_BYTES, request.most_bytes or PAGE_BYTES))
    slice_records = min(_MAX_COPY_SLICE, local_partitions.slice_records)
    while not page.is_full:
        entries = local_partitions.walk_all(partitions, page.after, slice_records)
        page.take(local_partitions.drops.present(entries))
        if page.corrupt:
            local_partitions.corruption.report(page.corrupt)
            raise CorruptRecord("a record to copy is corrupt; it must be repaired first")
        if not page.is_full:
            page.after = entries[-1][0] if len(entries) == slice_records else b""
            if not page.after:
                break
        yield Pause()
    return CopyReply(
        page.after, Frame(codec.pack_blobs(page.keys)), Frame(codec.pack_blobs(page.records))
    )


class _CopyPage:
    """The records of one reply."""

    def __init__(self, after: bytes, most_bytes: int) -> None:
        self.after = after
        self._left = most_bytes
        self.keys: list[bytes] = []
        self.records: list[bytes] = []
        self.corrupt: list[bytes] = []

    @property
    def is_full(self) -> bool:
        """Whether no more records fit."""
        return self._left <= 0

    def take(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Add records, until the page is full."""
        if not entries:
            return
        weights = list(
            accumulate([len(key) + len(record) + RECORD_BYTES for key, record in entries])
        )
        fitting = min(len(entries), bisect_left(weights, self._left) + 1)
        taken = entries[:fitting]
        self._left -= weights[fitting - 1]
        self.after = taken[-1][0]
        self.corrupt += [key for key, record in taken if not is_sound(key, record)]
        self.keys += map(_KEY, taken)
        self.records += map(_RECORD, taken)


def promises(local_partitions: LocalPartitions, request: PromisesRequest, now: int) -> Answering:
    """Reply with a page of the open promises for registers.

    Those that were given in an earlier epoch are on disk before. This peer gives none while
    another is streamed from it, unless that one is not counted.
    """
    partitions = unpack_partitions(request.partitions)
    if not request.after:
        yield Settle()
    store, after = local_partitions.store, request.after
    found: list[tuple[bytes, bytes]] = []
    for partition in partitions:
        begin, end = partition_range(partition)
        if after >= end:
            continue
        first = max(begin, after + b"\0" if after else begin)
        found += store.promises_between(first, end, _MAX_PROMISES - len(found))
        if len(found) >= _MAX_PROMISES:
            break
        yield Pause()
    keys = [storage_key for storage_key, _ in found]
    bound = store.high_water
    rounds = [unpack_promise(key, stored, bound).round for key, stored in found]
    last = keys[-1] if len(found) >= _MAX_PROMISES else b""
    floors = [] if request.after else [local_partitions.reaped(number) for number in partitions]
    packed = b"".join([number.to_bytes(8, "big") for number in rounds])
    packed_floors = b"".join([stamp.to_bytes(8, "big") for stamp in floors])
    return PromisesReply(last, packed, Frame(codec.pack_blobs(keys)), packed_floors)


def pull(local_partitions: LocalPartitions, request: Pull, now: int) -> Answering:
    """Reply with the records of storage keys; with fewer if the reply would be too large."""
    keys = codec.unpack_blobs(request.keys)
    records: list[bytes | None] = []
    corrupt: list[int] = []
    weight = 0
    for begin in range(0, len(keys), local_partitions.slice_records):
        with local_partitions.snapshot() as snapshot:
            for storage_key in keys[begin : begin + local_partitions.slice_records]:
                record = snapshot.get(storage_key)
                if record is not None and not is_sound(storage_key, record):
                    corrupt.append(len(records))
                    local_partitions.corruption.report([storage_key])
                    record = None
                records.append(record)
                weight += len(record or b"")
                if weight >= PAGE_BYTES:
                    return Records(corrupt, Frame(codec.pack_blobs(records)))
        yield Pause()
    return Records(corrupt, Frame(codec.pack_blobs(records)))


def floor(local_partitions: LocalPartitions, request: FloorRequest, now: int) -> Answering:
    """Promise to refuse writes up to a stamp, and reply with digests of the records up to it."""
    partitions = unpack_partitions(request.partitions)
    kind = kind_of(request.kind, DigestKind.WRITES)
    if local_partitions.is_lowering:
        raise NotReady("floors are being lowered; none is promised until that is on disk")
    latest = local_partitions.latest_promise()
    if request.stamp > latest:
        ahead = stamp_milliseconds(request.stamp) - stamp_milliseconds(latest)
        text = f"the floor is {ahead} ms later than this peer may promise"
        raise ProtocolError(text, latest=latest)
    local_partitions.floor = max(local_partitions.floor, request.stamp)
    for partition in partitions:
        local_partitions.promise(partition, request.stamp, now)
    # A promise must survive a restart. Otherwise the floor after a restart would have to come from
    # the clock, which may be wrong.
    yield from local_partitions.keep_floor()
    yield Settle()
    found = []
    for partition in partitions:
        found.append((yield from local_partitions.digests.of(partition, request.stamp, kind)))
        if len(found) % 16 == 0:
            yield Pause()
    return DigestsReply(b"".join(found), bytes(len(found)), bytes(4 * len(found)), kind=kind)


def release(local_partitions: LocalPartitions, request: ReleaseFloor, now: int) -> Answering:
    """Withdraw the promises for a stamp: the replicas differ, and have to be repaired."""
    yield Pause()
    released = local_partitions.release(unpack_partitions(request.partitions), request.stamp)
    return FloorReleased(pack_partitions(released))


def seen(local_partitions: LocalPartitions, request: SeenRequest, now: int) -> Answering:
    """Reply with the lives seen of the requesting peer's store, and record its current life."""
    memory, store_id = local_partitions.memory, local_partitions.store_ids.get(request.peer, "")
    known = memory.of(request.store_id or store_id)
    newest = memory.newest_stamp(request.store_id or store_id)
    others = [[store, *life] for store, life in memory.all()] if request.wants_others else []
    if request.high_water and request.store_id in ("", store_id):
        memory.note(store_id, Life(request.life, request.began, request.high_water))
    yield Pause()
    own = local_partitions.lineage.current
    return SeenReply(
        newest,
        own.stamp if local_partitions.freshness_confirmed else 0,
        local_partitions.store.store_id,
        own.number,
        own.began,
        [list(life) for life in known],
        others,
    )


def horizon(local_partitions: LocalPartitions, request: SetHorizon, now: int) -> Answering:
    """Advance the horizon of the partitions whose promise still holds."""
    kept = [
        partition
        for partition in unpack_partitions(request.partitions)
        if local_partitions.has_promised(partition, request.stamp, now)
    ]
    if kept:
        before = {partition: local_partitions.horizons[partition] for partition in kept}
        try:
            yield Merge(marks=[local_partitions.advance(kept, request.stamp)])
        except DStashError:
            # It is not on disk, so a restart would lose it: do not use it until then either.
            local_partitions.retreat(before, request.stamp)
            raise
    return HorizonReply(pack_partitions(kept))
