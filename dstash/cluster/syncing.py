"""Making two replicas of a partition equal by moving what differs, and nothing else."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar

from dstash.cluster.answering import PAGE_BYTES, kind_of, pack_partitions
from dstash.cluster.replica import Replica, effort
from dstash.cluster.tasks import Ask, Effect, Merge, Pause
from dstash.errors import Busy, ClockSkew, CorruptRecord, DiskFull, ProtocolError
from dstash.limits import MIB
from dstash.store.digest import DIGEST_BYTES, DigestKind, bucket_of, is_dead_at
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
    AskBuckets,
    AskCopy,
    AskVersions,
    BucketsAre,
    CopyIs,
    Pull,
    Push,
    VersionsAre,
)
from dstash.wire.shapes import Frame, Message

_Answer = TypeVar("_Answer", bound=Message)

Counting = Generator[Effect, Any, int]
Entries = list[tuple[bytes, bytes]]

#: What another peer said of a record: its version, then its checksum if that peer knows to tell it.
Mark = bytes

#: Tasks that fill a peer side by side; each keeps to its share of the rate.
FILLERS: Final = 2
#: Who orders a higher rate (bytes a second) than this wants data to move first of all.
_GENTLE_RATE: Final = 32 * MIB
#: Everybody else wants requests to feel little of it: at most so much (effort) moves in a second.
#: Of records of 100 B that is some 100,000, of larger ones more than 30 MB.
_GENTLE_EFFORT: Final = 42_000_000
#: Pages (effort) that take little time to give, to take in and to sync. They grow, to the second
#: size at most, where that is too little to reach the rate.
_GENTLE_PAGE: Final = 80 * 1024
_GENTLE_LARGEST_PAGE: Final = 320 * 1024

#: Partitions that a page is asked from, at first: to name them all each time is work for both.
_WINDOW: Final = 16

#: Records that are given, or asked for, at once to heal: their commit takes a few milliseconds.
_AT_ONCE: Final = 150
#: After each of those healing rests so many times as long as it took: requests keep their latency.
_REST: Final = 3
_LONGEST_REST_MS: Final = 200

#: How long a change of the rate may take to be noticed.
_RATE_MS: Final = 200
#: What comes in late may hurry until it has made up for this long at most.
_CREDIT_MS: Final = 50

#: Buckets compared at once: bounds the memory that a huge partition takes.
_BUCKETS_AT_ONCE: Final = 64


def copy(replica: Replica, partitions: Sequence[int], source: str, throttle: Throttle) -> Counting:
    """Copy whole partitions (ascending); returns the number of records."""
    begin, after, copied, size = 0, b"", 0, _page_bytes(replica.rate)
    window = _WINDOW
    while begin < len(partitions):
        began = replica.now()
        some = partitions[begin : begin + window]
        page = yield from ask(source, AskCopy(pack_partitions(some), after, size), CopyIs)
        entries = codec.unpack_entries(page.keys, page.records)
        if entries:
            yield Merge(entries)
        took = replica.now() - began
        copied += len(entries)
        weight = yield from throttle.take_in(entries)
        share = weight / effort(weight, len(entries)) if entries else 1.0
        size = _page_bytes(replica.rate, took, share)
        after = page.after
        if after:
            begin = bisect_left(partitions, int.from_bytes(after[:2], "big"), begin)
        else:
            begin += len(some)
            window *= 2  # they did not fill the page
    return copied


def _page_bytes(rate: int, took: int = 0, share: float = 1.0) -> int:
    """Return how large a page should be (effort).

    Args:
        took: how long (milliseconds) the last one took.
        share: the part of its effort that the bytes of its records made up.
    """
    if rate > _GENTLE_RATE:
        return PAGE_BYTES
    a_second = min(_GENTLE_EFFORT, rate / share) if rate else _GENTLE_EFFORT
    needed = round(a_second * took / (1000 * FILLERS))
    return min(_GENTLE_LARGEST_PAGE, max(_GENTLE_PAGE, needed))


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
    buried = [partition for partition in partitions if partition in horizons]
    while True:
        begin = after
        page, after = yield from _versions_page(source, partitions, (), begin)
        if any(_version(mark) == ABSENT for mark in page.values()):
            raise CorruptRecord(f"{source} holds a damaged record; it has to be mended first")
        newer = yield from _newer_there(replica, page)
        pulled += yield from _pull(replica, source, newer, throttle)
        yield from _drop_buried(replica, buried, _Span(begin, after, page), horizons)
        if not after:
            return pulled


class _Span(NamedTuple):
    """A page of marks, and the storage keys it lies between (empty: no bound)."""

    begin: bytes
    end: bytes
    marks: Mapping[bytes, Mark]


def _drop_buried(
    replica: Replica, partitions: Sequence[int], span: _Span, horizons: Mapping[int, Stamp]
) -> Generator[Effect, Any, None]:
    after = span.begin
    while partitions:
        entries = replica.holdings.walk_all(partitions, after)
        buried = [
            (storage_key, identity_of(record))
            for storage_key, record in entries
            if not (span.end and storage_key > span.end)
            and _is_later_write(record, span.marks.get(storage_key, ZERO))
            and horizon_stamp(record) <= horizons[partition_in(storage_key)]
        ]
        if buried:
            yield Merge(drops=buried)
        after = entries[-1][0] if len(entries) == replica.holdings.slice_records else b""
        if not after or (span.end and after >= span.end):
            return
        yield Pause()


def exchange(replica: Replica, partitions: Sequence[int], other: str) -> Counting:
    """Make both replicas of small partitions (ascending) equal; returns the records moved."""
    return (yield from _exchange(replica, partitions, (), other))


def exchange_large(replica: Replica, partition: int, other: str) -> Counting:
    """Like ``exchange``, for one partition of many records: only buckets that differ."""
    answer = yield from ask(other, AskBuckets(partition, DigestKind.CONTENT), BucketsAre)
    mine = yield from replica.holdings.buckets(partition, kind_of(answer.kind))
    differing = _differing_buckets(mine, answer.digests)
    moved = 0
    for begin in range(0, len(differing), _BUCKETS_AT_ONCE):
        some = differing[begin : begin + _BUCKETS_AT_ONCE]
        moved += yield from _exchange(replica, [partition], some, other)
    return moved


def _exchange(
    replica: Replica, partitions: Sequence[int], buckets: Sequence[int], other: str
) -> Counting:
    theirs: dict[bytes, Mark] = {}
    after = b""
    while True:
        page, after = yield from _versions_page(other, partitions, buckets, after)
        theirs.update((key, mark) for key, mark in page.items() if _version(mark) != ABSENT)
        if not after:
            break
    newer = yield from _newer_there(replica, theirs)
    try:
        moved = yield from _pull(replica, other, newer, Throttle(replica))
    except (Busy, ClockSkew, CorruptRecord, DiskFull):
        moved = 0  # some records have to wait for the next round; the others need not
    moved += yield from _push_newer(replica, partitions, set(buckets), theirs, other)
    replica.healed += moved
    return moved


def _push_newer(
    replica: Replica,
    partitions: Sequence[int],
    buckets: set[int],
    theirs: dict[bytes, Mark],
    other: str,
) -> Counting:
    holdings = replica.holdings
    pushed, after, missed = 0, b"", Entries()
    while True:
        entries = holdings.walk_all(partitions, after)
        missed += [
            (storage_key, record)
            for storage_key, record in entries
            if _may_win(record, theirs.get(storage_key, ZERO))
            and (not buckets or bucket_of(storage_key) in buckets)
            and not is_dead_at(record, holdings.horizons[int.from_bytes(storage_key[:2], "big")])
        ]
        is_last = len(entries) < holdings.slice_records
        if is_last or len(missed) > 2000:
            refused = yield from push(replica, other, missed, compared=True)
            pushed += len(missed) - len(refused)
            missed = []
        if is_last:
            return pushed
        after = entries[-1][0]
        yield Pause()


def push(
    replica: Replica, other: str, entries: Entries, *, compared: bool = False
) -> Generator[Effect, Any, list[bytes]]:
    """Send records to another replica, and wait until they are on its disk.

    Args:
        compared: a comparison found them to be missing; see ``Push``.

    Returns:
        the storage keys of those that it would not take.
    """
    refused: list[bytes] = []
    sound = [(key, record) for key, record in entries if is_sound(key, record)]
    throttle = Throttle(replica)
    for part in batches(sound):
        keys, records = zip(*part, strict=True)
        frames = Frame(codec.pack_blobs(keys)), Frame(codec.pack_blobs(records))
        message = Push(*frames, compared)
        began = replica.now()
        answer = yield from ask(other, message, Stored)
        refused += [keys[place] for place, code, *_ in answer.rejected if code]
        yield from throttle.keep(_weight(part))
        yield _rest(replica, began)
    return refused


def _rest(replica: Replica, began: int) -> Pause:
    return Pause(min(_LONGEST_REST_MS, _REST * (replica.now() - began)))


def _versions_page(
    source: str, partitions: Sequence[int], buckets: Sequence[int], after: bytes
) -> Generator[Effect, Any, tuple[dict[bytes, Mark], bytes]]:
    question = AskVersions(pack_partitions(partitions), bytes(buckets), after, checksums=True)
    page = yield from ask(source, question, VersionsAre)
    keys = codec.unpack_blobs(page.keys)
    if len(page.versions) != len(keys) * VERSION_BYTES:
        raise ProtocolError(f"{source} sent versions that do not fit their keys")
    if len(page.checksums) not in (0, len(keys) * CHECKSUM_END):
        raise ProtocolError(f"{source} sent checksums that do not fit their keys")
    versions: Iterable[Mark] = _split(page.versions, VERSION_BYTES)
    if page.checksums:
        versions = map(operator.add, versions, _split(page.checksums, CHECKSUM_END))
    return dict(zip(keys, versions, strict=True)), page.after


def _version(mark: Mark) -> Version:
    return mark[:VERSION_BYTES]


def _differs(record: bytes, mark: Mark) -> bool:
    """Whether a record has the version of a mark, and another checksum. A merge decides which."""
    checksum = mark[VERSION_BYTES:]
    same = version_of(record) == _version(mark)
    return same and bool(checksum) and record[:CHECKSUM_END] != checksum


def _is_later_write(record: bytes, mark: Mark) -> bool:
    """Whether a record is of a later write than a mark, whenever the two were touched."""
    return write_of(version_of(record)) > write_of(mark)


def _may_win(record: bytes, mark: Mark) -> bool:
    return version_of(record) > _version(mark) or _differs(record, mark)


def _may_lose(record: bytes, mark: Mark) -> bool:
    return version_of(record) < _version(mark) or _differs(record, mark)


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


def _newer_there(
    replica: Replica, theirs: dict[bytes, Mark]
) -> Generator[Effect, Any, list[bytes]]:
    newer: list[bytes] = []
    offered = list(theirs.items())
    at_once = replica.holdings.slice_records
    for begin in range(0, len(offered), at_once):
        with replica.holdings.store.snapshot() as snapshot:
            for storage_key, mark in offered[begin : begin + at_once]:
                record = snapshot.get(storage_key)
                if record is None or _may_lose(record, mark):
                    newer.append(storage_key)
        yield Pause()
    return newer


def _pull(replica: Replica, source: str, keys: list[bytes], throttle: Throttle) -> Counting:
    pulled = 0
    while keys:
        some, rest = keys[:_AT_ONCE], keys[_AT_ONCE:]
        began = replica.now()
        answer = yield from ask(source, Pull(Frame(codec.pack_blobs(some))), Records)
        records = codec.unpack_optional_blobs(answer.records)
        if not records:
            raise ProtocolError(f"{source} answered a pull with nothing")
        if answer.damaged:
            raise CorruptRecord(f"{source} holds a damaged record; it has to be mended first")
        entries = [(key, one) for key, one in zip(some, records, strict=False) if one is not None]
        if entries:
            yield Merge(entries)
        yield from throttle.take_in(entries)
        yield _rest(replica, began)
        pulled += len(entries)
        keys = some[len(records) :] + rest
    return pulled


class Throttle:
    """Keeps one task to the rate, on average over some milliseconds.

    What fills a peer moves gently besides, whatever the rate, if it is not a high one: so that
    requests feel little of it.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._due = float(replica.now())

    def take_in(self, entries: Entries) -> Counting:
        """Count what a filler took in, and wait; returns what it weighs (bytes)."""
        weight = _weight(entries)
        self._replica.progress.records += len(entries)
        self._replica.progress.bytes += weight
        yield from self.keep(FILLERS * weight, FILLERS * effort(weight, len(entries)))
        return weight

    def keep(self, weight: int, toil: int = 0) -> Generator[Effect, Any, None]:
        """Wait until another ``weight`` bytes may come, which take ``toil`` (effort) to move."""
        # By the moment when the ones before were due, not when they came: clocks of milliseconds
        # and wake-ups that are late would add up.
        begin = self._due
        while (takes := self._takes(weight, toil)) is not None:
            self._due = begin + takes
            left = int(self._due - self._replica.now())
            if left <= 0:
                break
            yield Pause(min(_RATE_MS, left))
        now = float(self._replica.now())
        # Without a bound nothing is due later, whatever was while there was one.
        self._due = now if takes is None else max(self._due, now - _CREDIT_MS)

    def _takes(self, weight: int, toil: int) -> float | None:
        """Return how long (milliseconds) it should take; None when as short as it goes."""
        rate = self._replica.rate
        at_rate = 1000 * weight / rate if rate else None
        if rate > _GENTLE_RATE or not toil:
            return at_rate
        return max(at_rate or 0.0, 1000 * toil / _GENTLE_EFFORT)


def _weight(entries: Entries) -> int:
    return sum(map(len, chain.from_iterable(entries)))


def _differing_buckets(mine: bytes, theirs: bytes) -> list[int]:
    if len(theirs) != len(mine):
        raise ProtocolError("a peer answered with another number of buckets")
    pairs = zip(_split(mine, DIGEST_BYTES), _split(theirs, DIGEST_BYTES), strict=True)
    return [number for number, (one, other) in enumerate(pairs) if one != other]


def split_digests(packed: bytes, count: int) -> list[bytes]:
    """Return ``count`` digests; ``ProtocolError`` when there are not so many."""
    if len(packed) != count * DIGEST_BYTES:
        raise ProtocolError("a peer answered with another number of digests")
    return list(_split(packed, DIGEST_BYTES))


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


def _split(packed: bytes, size: int) -> Iterable[bytes]:
    return (packed[begin : begin + size] for begin in range(0, len(packed), size))
