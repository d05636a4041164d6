"""Making two replicas of a partition equal by moving what differs, and nothing else."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from dstash.cluster.replication.handlers import PAGE_BYTES, pack_partitions
from dstash.cluster.replication.replica import Replica, effort
from dstash.cluster.replication.tasks import Ask, Effect, Merge, Pause
from dstash.cluster.replication.throttle import Counting, Throttle, page_bytes, weight_of
from dstash.errors import Busy, ClockSkew, CorruptRecord, DiskFull, DStashError, ProtocolError
from dstash.store.digest import DIGEST_BYTES, is_reapable_at
from dstash.store.record import (
    ABSENT,
    CHECKSUM_END,
    horizon_stamp,
    identity_of,
    is_sound,
    partition_in,
    version_of,
)
from dstash.version import VERSION_BYTES, ZERO, Stamp, Version, write_of
from dstash.wire import codec
from dstash.wire.messages import Records, Stored
from dstash.wire.replication import (
    CopyReply,
    CopyRequest,
    Pull,
    Push,
    VersionsReply,
    VersionsRequest,
)
from dstash.wire.shapes import Frame, Message

_Answer = TypeVar("_Answer", bound=Message)

Entries = list[tuple[bytes, bytes]]

#: What another peer said of a record: its version, then its checksum if that peer knows to tell it.
Mark = bytes

#: Partitions that a page is asked from, at first: to name them all each time is work for both.
_WINDOW: Final = 16

#: Records that are given, or asked for, at once to heal: their commit takes a few milliseconds.
_AT_ONCE: Final = 150
#: After each of those healing rests so many times as long as it took: requests keep their latency.
_REST: Final = 3
_LONGEST_REST_MS: Final = 200


def copy(replica: Replica, partitions: Sequence[int], source: str, throttle: Throttle) -> Counting:
    """Copy whole partitions (ascending); returns the number of records."""
    begin, after, copied, size = 0, b"", 0, page_bytes(replica.rate)
    window = _WINDOW
    while begin < len(partitions):
        began = replica.now()
        some = partitions[begin : begin + window]
        page = yield from ask(source, CopyRequest(pack_partitions(some), after, size), CopyReply)
        entries = codec.unpack_entries(page.keys, page.records)
        if entries:
            yield Merge(entries)
        took = replica.now() - began
        copied += len(entries)
        weight = yield from throttle.take_in(entries)
        share = weight / effort(weight, len(entries)) if entries else 1.0
        size = page_bytes(replica.rate, took, share)
        after = page.after
        if after:
            begin = bisect_left(partitions, partition_in(after), begin)
        else:
            begin += len(some)
            window *= 2  # they did not fill the page
    return copied


def pull_newer(
    replica: Replica,
    partitions: Sequence[int],
    source: str,
    horizons: Mapping[int, Stamp],
    throttle: Throttle,
) -> Counting:
    """Fetch what ``source`` has newer than this peer, and drop what it has buried.

    Args:
        horizons: by partition, up to where the source knows the whole truth.

    Returns:
        the number of records that came.

    Raises:
        CorruptRecord: the source holds a damaged record, so it has less than it should.
    """
    pulled, after = 0, b""
    reaped = [partition for partition in partitions if partition in horizons]
    while True:
        begin = after
        page, after = yield from versions_page(source, partitions, (), begin)
        if any(version_in(mark) == ABSENT for mark in page.values()):
            raise CorruptRecord(f"{source} holds a damaged record; it has to be mended first")
        newer = yield from newer_there(replica, page)
        pulled += (yield from pull(replica, source, newer, throttle, {})).check()
        yield from _drop_reaped(replica, reaped, _Span(begin, after, page), horizons)
        if not after:
            return pulled


class _Span(NamedTuple):
    """A page of marks, and the storage keys it lies between (empty: no bound)."""

    begin: bytes
    end: bytes
    marks: Mapping[bytes, Mark]


def _drop_reaped(
    replica: Replica, partitions: Sequence[int], span: _Span, horizons: Mapping[int, Stamp]
) -> Generator[Effect, Any, None]:
    after = span.begin
    while partitions:
        entries = replica.local_partitions.walk_all(partitions, after)
        reaped = [
            (storage_key, identity_of(record))
            for storage_key, record in entries
            if not (span.end and storage_key > span.end)
            and _is_later_write(record, span.marks.get(storage_key, ZERO))
            and horizon_stamp(record) <= horizons[partition_in(storage_key)]
        ]
        if reaped:
            yield Merge(drops=reaped)
        after = entries[-1][0] if len(entries) == replica.local_partitions.slice_records else b""
        if not after or (span.end and after >= span.end):
            return
        yield Pause()


def push(
    replica: Replica, other: str, entries: Entries, *, compared: bool = False
) -> Generator[Effect, Any, dict[bytes, int]]:
    """Send records to another replica, and wait until they are on its disk.

    Args:
        compared: a comparison found them to be missing; see ``Push``.

    Returns:
        the storage keys of those that it would not take, and the code of the error.
    """
    refused: dict[bytes, int] = {}
    sound = [(key, record) for key, record in entries if is_sound(key, record)]
    throttle = Throttle(replica)
    for part in batches(sound):
        keys, records = zip(*part, strict=True)
        frames = Frame(codec.pack_blobs(keys)), Frame(codec.pack_blobs(records))
        message = Push(*frames, compared)
        began = replica.now()
        answer = yield from ask(other, message, Stored)
        refused |= {keys[place]: code for place, code, *_ in answer.rejected if code}
        yield from throttle.keep(weight_of(part))
        yield _rest(replica, began)
    return refused


def _rest(replica: Replica, began: int) -> Pause:
    return Pause(min(_LONGEST_REST_MS, _REST * (replica.now() - began)))


def versions_page(
    source: str, partitions: Sequence[int], buckets: Sequence[int], after: bytes
) -> Generator[Effect, Any, tuple[dict[bytes, Mark], bytes]]:
    question = VersionsRequest(pack_partitions(partitions), bytes(buckets), after, checksums=True)
    page = yield from ask(source, question, VersionsReply)
    keys = codec.unpack_blobs(page.keys)
    if len(page.versions) != len(keys) * VERSION_BYTES:
        raise ProtocolError(f"{source} sent versions that do not fit their keys")
    if len(page.checksums) not in (0, len(keys) * CHECKSUM_END):
        raise ProtocolError(f"{source} sent checksums that do not fit their keys")
    versions: Iterable[Mark] = split(page.versions, VERSION_BYTES)
    if page.checksums:
        versions = map(operator.add, versions, split(page.checksums, CHECKSUM_END))
    return dict(zip(keys, versions, strict=True)), page.after


def version_in(mark: Mark) -> Version:
    """Return the version of a mark."""
    return mark[:VERSION_BYTES]


def _differs(record: bytes, mark: Mark) -> bool:
    """Whether a record has the version of a mark, and another checksum. A merge decides which."""
    checksum = mark[VERSION_BYTES:]
    same = version_of(record) == version_in(mark)
    return same and bool(checksum) and record[:CHECKSUM_END] != checksum


def _is_later_write(record: bytes, mark: Mark) -> bool:
    """Whether a record is of a later write than a mark, whenever the two were touched."""
    return write_of(version_of(record)) > write_of(mark)


def may_win(record: bytes, mark: Mark) -> bool:
    """Whether a record may win over the one that a mark stands for."""
    return version_of(record) > version_in(mark) or _differs(record, mark)


def _may_lose(record: bytes, mark: Mark) -> bool:
    return version_of(record) < version_in(mark) or _differs(record, mark)


def ask(peer: str, question: Message, kind: type[_Answer]) -> Generator[Effect, Any, _Answer]:
    """Ask a peer; ``ProtocolError`` when the answer is of another kind."""
    answer = yield Ask(peer, question)
    if not isinstance(answer, kind):
        raise ProtocolError(f"{peer} answered with an unexpected {type(answer).__name__}")
    return answer


def batches(entries: Entries) -> Iterator[Entries]:
    """Cut entries into runs that fit into one message."""
    run: Entries = []
    weight = 0
    for entry in entries:
        cost = len(entry[0]) + len(entry[1])
        if run and (weight + cost > PAGE_BYTES or len(run) >= _AT_ONCE):
            yield run
            run, weight = [], 0
        run.append(entry)
        weight += cost
    if run:
        yield run


def newer_there(replica: Replica, theirs: dict[bytes, Mark]) -> Generator[Effect, Any, list[bytes]]:
    newer: list[bytes] = []
    offered = list(theirs.items())
    at_once = replica.local_partitions.slice_records
    for begin in range(0, len(offered), at_once):
        with replica.local_partitions.store.snapshot() as snapshot:
            for storage_key, mark in offered[begin : begin + at_once]:
                record = snapshot.get(storage_key)
                if record is None or _may_lose(record, mark):
                    newer.append(storage_key)
        yield Pause()
    return newer


class Pulled(NamedTuple):
    """What came of a fetch: how many records came, and what was refused here or damaged there."""

    moved: int
    refused: dict[bytes, DStashError]

    def check(self) -> int:
        """Return how many records came; raise the first refusal if there is any."""
        for error in self.refused.values():
            raise error
        return self.moved


def pull(
    replica: Replica,
    source: str,
    keys: list[bytes],
    throttle: Throttle,
    horizons: Mapping[int, Stamp],
) -> Generator[Effect, Any, Pulled]:
    """Fetch records. One that is refused, or damaged at its source, holds up none of the others.

    Args:
        horizons: of the source, by partition. It has collected what is dead at them.
    """
    pulled = Pulled(0, {})
    while keys:
        some, rest = keys[:_AT_ONCE], keys[_AT_ONCE:]
        began = replica.now()
        answer = yield from ask(source, Pull(Frame(codec.pack_blobs(some))), Records)
        records = codec.unpack_optional_blobs(answer.records)
        if not records:
            raise ProtocolError(f"{source} answered a pull with nothing")
        corrupt = CorruptRecord(f"{source} holds a damaged record; it has to be mended first")
        pulled.refused.update((some[place], corrupt) for place in answer.corrupt)
        entries = [
            (key, record)
            for key, record in zip(some, records, strict=False)
            if record is not None and not is_reapable_at(record, horizons.get(partition_in(key), 0))
        ]
        refusal = yield from _take(entries)
        if refusal is None:
            pulled = pulled._replace(moved=pulled.moved + len(entries))
        else:
            pulled.refused.update((key, refusal) for key, _ in entries)
        yield from throttle.take_in(entries)
        yield _rest(replica, began)
        keys = some[len(records) :] + rest
    return pulled


def _take(entries: Entries) -> Generator[Effect, Any, DStashError | None]:
    """Merge records; returns why some of them were refused, None if none was."""
    try:
        if entries:
            yield Merge(entries)
    except (Busy, ClockSkew, CorruptRecord, DiskFull) as error:
        return error
    return None


def split_digests(packed: bytes, count: int) -> list[bytes]:
    """Return ``count`` digests; ``ProtocolError`` when there are not so many."""
    if len(packed) != count * DIGEST_BYTES:
        raise ProtocolError("a peer answered with another number of digests")
    return list(split(packed, DIGEST_BYTES))


def split_counts(packed: bytes, count: int) -> list[int]:
    """Return ``count`` numbers; ``ProtocolError`` when there are not so many."""
    if len(packed) != count * 4:
        raise ProtocolError("a peer answered with another number of counts")
    return [int.from_bytes(packed[begin : begin + 4], "big") for begin in range(0, 4 * count, 4)]


def split_horizons(packed: bytes, count: int) -> list[Stamp]:
    """Return ``count`` horizons; none from a peer of an earlier version, which does not say."""
    if len(packed) != 8 * count:
        return []
    return [int.from_bytes(packed[begin : begin + 8], "big") for begin in range(0, 8 * count, 8)]


def split_flags(packed: bytes, count: int) -> bytes:
    """Return ``count`` flags, a byte each; ``ProtocolError`` when there are not so many."""
    if len(packed) != count:
        raise ProtocolError("a peer answered with another number of flags")
    return packed


def split(packed: bytes, size: int) -> Iterable[bytes]:
    """Yield pieces of a size."""
    return (packed[begin : begin + size] for begin in range(0, len(packed), size))
