"""How a peer answers the questions of other peers: as tasks, slice by slice."""

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
from dstash.errors import CorruptRecord, DStashError, ProtocolError
from dstash.limits import PARTITIONS
from dstash.store.digest import BUCKETS, DIGEST_BYTES, EMPTY, DigestKind, bucket_of
from dstash.store.record import ABSENT, CHECKSUM_END, is_sound, version_of
from dstash.version import stamp_milliseconds
from dstash.wire import codec
from dstash.wire.messages import Records
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

#: What one page of records weighs (bytes), at most, but for a single larger record.
PAGE_BYTES: Final = 512 * 1024
PAGE_KEYS: Final = 4000
_COPY_SLICE: Final = 32

#: In ``DigestsAre.busy``: the partition was left out; its digest lacks records that are damaged.
BUSY: Final = 1
CORRUPT: Final = 2

_KEY: Final = itemgetter(0)
_RECORD: Final = itemgetter(1)

Answering = Generator[Effect, Any, Message]


def unpack_partitions(packed: bytes) -> list[int]:
    """Return partition numbers; ``ProtocolError`` when they are not such."""
    if len(packed) % 2 or len(packed) > 2 * PARTITIONS:
        raise ProtocolError("partitions are not a sequence of 16-bit numbers")
    numbers = list(struct.unpack(f">{len(packed) // 2}H", packed))
    check_partition(max(numbers, default=0))
    return numbers


def pack_partitions(numbers: Sequence[int]) -> bytes:
    """Return partition numbers as they travel."""
    return struct.pack(f">{len(numbers)}H", *numbers)


def check_partition(number: int) -> None:
    """Refuse a number that is no partition."""
    if number >= PARTITIONS:
        raise ProtocolError(f"partition {number} is not below {PARTITIONS}")


def kind_of(number: int, best: DigestKind = DigestKind.CONTENT) -> DigestKind:
    """Return the kind of digest that a message names: the best one, or ``VERSIONS``."""
    return best if number == best else DigestKind.VERSIONS


def digests(local_partitions: LocalPartitions, question: DigestsRequest, now: int) -> Answering:
    """Answer with a digest per partition."""
    kind = kind_of(question.kind)
    # What was accepted under an older epoch must be in the answer: see ``transfer``.
    yield Settle()
    if question.skip_all:
        return (yield from _outlines(local_partitions, question))
    found, busy, counts, horizons = [], bytearray(), [], []
    for partition in unpack_partitions(question.partitions):
        is_skipped = question.skip_busy and local_partitions.is_busy(partition, now)
        found.append(
            EMPTY if is_skipped else (yield from local_partitions.digest(partition, kind=kind))
        )
        is_whole = partition not in local_partitions.corruption
        busy.append(BUSY if is_skipped else 0 if is_whole else CORRUPT)
        counts.append(local_partitions.count(partition).to_bytes(4, "big"))
        horizons.append(local_partitions.horizons[partition].to_bytes(8, "big"))
        if len(found) % 64 == 0:
            yield Pause()
    return DigestsReply(b"".join(found), bytes(busy), b"".join(counts), b"".join(horizons), kind)


def _outlines(local_partitions: LocalPartitions, question: DigestsRequest) -> Answering:
    """Answer with horizons, and with 1 for a count where anything is."""
    partitions = unpack_partitions(question.partitions)
    empty = set((yield from local_partitions.empty_among(sorted(partitions))))
    counts = b"".join([int(one not in empty).to_bytes(4, "big") for one in partitions])
    nothing = bytes(len(partitions))
    horizons = b"".join([local_partitions.horizons[one].to_bytes(8, "big") for one in partitions])
    return DigestsReply(DIGEST_BYTES * nothing, nothing, counts, horizons)


def buckets(local_partitions: LocalPartitions, question: BucketsRequest, now: int) -> Answering:
    """Answer with a digest per bucket."""
    check_partition(question.partition)
    yield Settle()
    kind = kind_of(question.kind)
    return BucketsReply((yield from local_partitions.buckets(question.partition, kind)), kind)


def versions(local_partitions: LocalPartitions, question: VersionsRequest, now: int) -> Answering:
    """Answer with a page of keys and versions; that of a damaged record is all zero."""
    partitions = unpack_partitions(question.partitions)
    if not question.after:
        yield Settle()
    wanted = set(question.buckets or range(BUCKETS))
    keys: list[bytes] = []
    found: list[bytes] = []
    checksums: list[bytes] = []
    after = question.after
    while len(keys) < PAGE_KEYS:
        entries = local_partitions.walk_all(partitions, after)
        for storage_key, record in entries:
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
    wanted_checksums = b"".join(checksums) if question.checksums else b""
    return VersionsReply(after, b"".join(found), Frame(codec.pack_blobs(keys)), wanted_checksums)


def copy(local_partitions: LocalPartitions, question: CopyRequest, now: int) -> Answering:
    """Answer with a page of whole records.

    Raises:
        CorruptRecord: one is damaged. To leave it out would tell that there is none.
    """
    partitions = unpack_partitions(question.partitions)
    if not question.after:
        yield Settle()
    page = _CopyPage(question.after, min(PAGE_BYTES, question.most_bytes or PAGE_BYTES))
    at_once = min(_COPY_SLICE, local_partitions.slice_records)
    while not page.is_full:
        entries = local_partitions.walk_all(partitions, page.after, at_once)
        page.take(entries)
        if page.corrupt:
            local_partitions.corruption.report(page.corrupt)
            raise CorruptRecord("a record to be copied is damaged; it has to be mended first")
        if len(entries) < at_once and not page.is_full:
            page.after = b""
            break
        yield Pause()
    return CopyReply(
        page.after, Frame(codec.pack_blobs(page.keys)), Frame(codec.pack_blobs(page.records))
    )


class _CopyPage:
    """Records on their way into one answer."""

    def __init__(self, after: bytes, most_bytes: int) -> None:
        self.after = after
        self._left = most_bytes
        self.keys: list[bytes] = []
        self.records: list[bytes] = []
        self.corrupt: list[bytes] = []

    @property
    def is_full(self) -> bool:
        """Whether it takes no more."""
        return self._left <= 0

    def take(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Add records, until the page is full."""
        if not entries:
            return
        weights = list(accumulate([len(key) + len(one) + RECORD_BYTES for key, one in entries]))
        fitting = min(len(entries), bisect_left(weights, self._left) + 1)
        taken = entries[:fitting]
        self._left -= weights[fitting - 1]
        self.after = taken[-1][0]
        self.corrupt += [key for key, record in taken if not is_sound(key, record)]
        self.keys += map(_KEY, taken)
        self.records += map(_RECORD, taken)


def pull(local_partitions: LocalPartitions, question: Pull, now: int) -> Answering:
    """Answer with the records of storage keys; fewer when the answer would become too large."""
    keys = codec.unpack_blobs(question.keys)
    records: list[bytes | None] = []
    corrupt: list[int] = []
    weight = 0
    for begin in range(0, len(keys), local_partitions.slice_records):
        with local_partitions.store.snapshot() as snapshot:
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


def floor(local_partitions: LocalPartitions, question: FloorRequest, now: int) -> Answering:
    """Promise to refuse what is stamped up to a moment, and answer with what is there."""
    partitions = unpack_partitions(question.partitions)
    kind = kind_of(question.kind, DigestKind.WRITES)
    latest = local_partitions.latest_promise()
    if question.stamp > latest:
        ahead = stamp_milliseconds(question.stamp) - stamp_milliseconds(latest)
        text = f"the floor is {ahead} ms later than this peer may promise"
        raise ProtocolError(text, latest=latest)
    local_partitions.floor = max(local_partitions.floor, question.stamp)
    for partition in partitions:
        local_partitions.promise(partition, question.stamp, now)
    # A promise to clients must outlive a restart, which otherwise would have to take a floor
    # from a clock, which may be wrong.
    yield from local_partitions.keep_floor()
    yield Settle()
    found = []
    for partition in partitions:
        found.append((yield from local_partitions.digest(partition, question.stamp, kind)))
        if len(found) % 16 == 0:
            yield Pause()
    return DigestsReply(b"".join(found), bytes(len(found)), bytes(4 * len(found)), kind=kind)


def release(local_partitions: LocalPartitions, question: ReleaseFloor, now: int) -> Answering:
    """Take back the promises for a stamp: replicas did not agree on it, and have to be repaired."""
    yield Pause()
    released = local_partitions.release(unpack_partitions(question.partitions), question.stamp)
    return FloorReleased(pack_partitions(released))


def seen(local_partitions: LocalPartitions, question: SeenRequest, now: int) -> Answering:
    """Answer with what was seen of the asking peer's store; and remember how new that is now."""
    memory, store_id = local_partitions.memory, local_partitions.store_ids.get(question.peer, "")
    known = memory.of(question.store_id or store_id)
    newest = memory.newest_stamp(question.store_id or store_id)
    others = [[one, *life] for one, life in memory.all()] if question.wants_others else []
    if question.high_water and question.store_id in ("", store_id):
        memory.note(store_id, Life(question.life, question.began, question.high_water))
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


def horizon(local_partitions: LocalPartitions, question: SetHorizon, now: int) -> Answering:
    """Set the horizon where the promise for it still holds."""
    kept = [
        partition
        for partition in unpack_partitions(question.partitions)
        if local_partitions.has_promised(partition, question.stamp, now)
    ]
    if kept:
        before = {partition: local_partitions.horizons[partition] for partition in kept}
        try:
            yield Merge(marks=[local_partitions.advance(kept, question.stamp)])
        except DStashError:
            # It is not on disk: this peer must not go by it, and be without it after a restart.
            local_partitions.retreat(before, question.stamp)
            raise
    return HorizonReply(pack_partitions(kept))
