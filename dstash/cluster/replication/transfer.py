"""Transfer of records between replicas: copy, pull and push, with only the differences moved."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from dstash.cluster.replication.replica import Replica, effort
from dstash.cluster.replication.tasks import Ask, Effect, Merge, Pause
from dstash.cluster.replication.throttle import Counting, Throttle, page_bytes, weight_of
from dstash.errors import Busy, ClockSkew, CorruptRecord, DiskFull, DStashError, ProtocolError
from dstash.store.digest import is_reapable_at
from dstash.store.record import (
    ABSENT,
    CHECKSUM_END,
    VERSION_END,
    horizon_stamp,
    identity_of,
    is_sound,
    partition_in,
    version_of,
)
from dstash.types import RecordFlag
from dstash.version import VERSION_BYTES, ZERO, Stamp, Version, write_of
from dstash.wire import codec
from dstash.wire.messages import Records, Stored
from dstash.wire.packing import batches, pack_partitions, split
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

#: Merges records; returns the error if some were refused, else None.
Take = Callable[[Entries], Generator[Effect, Any, DStashError | None]]

#: Identity of a record on another peer: its version, then its checksum if that peer sends it.
Fingerprint = bytes

#: Partitions named in the first request for a page: naming all of them each time costs both sides.
_FIRST_WINDOW: Final = 16

#: Records pushed or pulled in one message during repair: their commit takes a few milliseconds.
_MAX_REPAIR_RECORDS: Final = 150
#: After each message repair rests for this multiple of the time it took, to keep requests fast.
_REST_FACTOR: Final = 3
_MAX_REST_MS: Final = 200


def copy(
    replica: Replica,
    partitions: Sequence[int],
    source: str,
    throttle: Throttle,
    take_in: Take | None = None,
) -> Counting:
    """Copy whole partitions (ascending); returns the number of records.

    Args:
        take_in: merges the records of a page; ``take`` without it.

    Raises:
        DStashError: some records were refused.
    """
    begin, after, copied, size = 0, b"", 0, page_bytes(replica.streaming_rate)
    window = _FIRST_WINDOW
    while begin < len(partitions):
        began = replica.now()
        requested = partitions[begin : begin + window]
        request = CopyRequest(pack_partitions(requested), after, size)
        page = yield from ask(source, request, CopyReply)
        entries = codec.unpack_entries(page.keys, page.records)
        refusal = yield from (take_in or take)(entries)
        if refusal is not None:
            raise refusal
        took = replica.now() - began
        copied += len(entries)
        weight = yield from throttle.take_in(entries)
        share = weight / effort(weight, len(entries)) if entries else 1.0
        size = page_bytes(replica.streaming_rate, took, share)
        after = page.after
        if after:
            begin = bisect_left(partitions, partition_in(after), begin)
        else:
            begin += len(requested)
            window *= 2  # the page was not full
    return copied


def pull_newer(
    replica: Replica,
    partitions: Sequence[int],
    source: str,
    reaped: Reaped,
    throttle: Throttle,
    take_in: Take,
    *,
    registers: bool = False,
) -> Counting:
    """Pull the records that are newer on ``source``, and drop those that it has reaped.

    Args:
        reaped: which records the source may have reaped.
        take_in: merges records.
        registers: whether to look at registers only.

    Returns:
        the number of records pulled.

    Raises:
        CorruptRecord: the source has a corrupt record, so its data is incomplete.
    """
    pulled, after = 0, b""
    while True:
        begin = after
        page, after = yield from versions_page(source, partitions, (), begin, registers=registers)
        if any(version_in(fingerprint) == ABSENT for fingerprint in page.values()):
            raise CorruptRecord(f"{source} has a corrupt record; it must be repaired first")
        newer = yield from newer_on_peer(replica, page)
        pulled += (yield from pull(replica, source, newer, throttle, {}, take_in)).check()
        compared_page = _VersionPage(begin, after, page, registers)
        yield from _drop_reaped(replica, partitions, compared_page, reaped)
        if not after:
            return pulled


class Reaped(NamedTuple):
    """The records that a source may have reaped, so that they must not return from here.

    ``horizons``: of the source, by partition, where they are later than those of this peer.
    ``floors``: the highest horizon that it has had, for registers (T7).
    """

    horizons: Mapping[int, Stamp]
    floors: Mapping[int, Stamp]

    def any_in(self, partition: int) -> bool:
        """Whether it may have reaped records of a partition that this peer may hold."""
        return partition in self.horizons or partition in self.floors

    def covers(self, storage_key: bytes, record: bytes) -> bool:
        """Whether it may have reaped a record."""
        partition = partition_in(storage_key)
        stamp = self.horizons.get(partition, 0)
        if record[VERSION_END] & RecordFlag.REGISTER:
            stamp = max(stamp, self.floors.get(partition, 0))
        return horizon_stamp(record) <= stamp


class _VersionPage(NamedTuple):
    """The fingerprints of a page, and the storage keys around it (empty: no bound).

    ``registers``: whether it has registers only.
    """

    begin: bytes
    end: bytes
    fingerprints: Mapping[bytes, Fingerprint]
    registers: bool


def _drop_reaped(
    replica: Replica, partitions: Sequence[int], page: _VersionPage, reaped: Reaped
) -> Generator[Effect, Any, None]:
    partitions = [partition for partition in partitions if reaped.any_in(partition)]
    after, held = page.begin, replica.local_partitions
    walk = held.walk_registers if page.registers else held.walk_all
    while partitions:
        entries = walk(partitions, after)
        drops = [
            (storage_key, identity_of(record))
            for storage_key, record in entries
            if not (page.end and storage_key > page.end)
            and _is_later_write(record, page.fingerprints.get(storage_key, ZERO))
            and reaped.covers(storage_key, record)
        ]
        if drops:
            yield Merge(drops=drops)
        after = entries[-1][0] if len(entries) == held.slice_records else b""
        if not after or (page.end and after >= page.end):
            return
        yield Pause()


def push(
    replica: Replica, peer: str, entries: Entries, *, compared: bool = False
) -> Generator[Effect, Any, dict[bytes, int]]:
    """Send records to another replica, and wait until they are on its disk.

    Args:
        compared: whether a comparison found the records to be missing; see ``Push``.

    Returns:
        the storage keys that the replica rejected, with the error codes.
    """
    refused: dict[bytes, int] = {}
    sound = [(key, record) for key, record in entries if is_sound(key, record)]
    throttle = Throttle(replica, lambda: replica.repair_rate)
    for part in batches(sound):
        keys, records = zip(*part, strict=True)
        frames = Frame(codec.pack_blobs(keys)), Frame(codec.pack_blobs(records))
        message = Push(*frames, compared)
        began = replica.now()
        reply = yield from ask(peer, message, Stored)
        refused |= {keys[position]: code for position, code, *_ in reply.rejected if code}
        yield from throttle.keep(weight_of(part))
        yield _rest(replica, began)
    return refused


def _rest(replica: Replica, began: int) -> Pause:
    return Pause(min(_MAX_REST_MS, _REST_FACTOR * (replica.now() - began)))


def versions_page(
    source: str,
    partitions: Sequence[int],
    buckets: Sequence[int],
    after: bytes,
    *,
    registers: bool = False,
) -> Generator[Effect, Any, tuple[dict[bytes, Fingerprint], bytes]]:
    """Fetch a page of fingerprints by storage key, and the position after it (empty: the end)."""
    packed = pack_partitions(partitions)
    request = VersionsRequest(packed, bytes(buckets), after, checksums=True, registers=registers)
    page = yield from ask(source, request, VersionsReply)
    keys = codec.unpack_blobs(page.keys)
    if len(page.versions) != len(keys) * VERSION_BYTES:
        raise ProtocolError(f"{source} sent versions that do not match its {len(keys)} keys")
    if len(page.checksums) not in (0, len(keys) * CHECKSUM_END):
        raise ProtocolError(f"{source} sent checksums that do not match its {len(keys)} keys")
    versions: Iterable[Fingerprint] = split(page.versions, VERSION_BYTES)
    if page.checksums:
        versions = map(operator.add, versions, split(page.checksums, CHECKSUM_END))
    return dict(zip(keys, versions, strict=True)), page.after


def version_in(fingerprint: Fingerprint) -> Version:
    """Return the version in a fingerprint."""
    return fingerprint[:VERSION_BYTES]


def _differs(record: bytes, fingerprint: Fingerprint) -> bool:
    """Whether a record has the same version but another checksum; a merge then decides."""
    checksum = fingerprint[VERSION_BYTES:]
    same = version_of(record) == version_in(fingerprint)
    return same and bool(checksum) and record[:CHECKSUM_END] != checksum


def _is_later_write(record: bytes, fingerprint: Fingerprint) -> bool:
    """Whether a record is of a later write than a fingerprint, touches aside."""
    return write_of(version_of(record)) > write_of(fingerprint)


def may_win(record: bytes, fingerprint: Fingerprint) -> bool:
    """Whether a record may win over the one with the fingerprint."""
    return version_of(record) > version_in(fingerprint) or _differs(record, fingerprint)


def _may_lose(record: bytes, fingerprint: Fingerprint) -> bool:
    return version_of(record) < version_in(fingerprint) or _differs(record, fingerprint)


def ask(peer: str, request: Message, kind: type[_Answer]) -> Generator[Effect, Any, _Answer]:
    """Send a request to a peer; ``ProtocolError`` if the reply is of another kind."""
    reply = yield Ask(peer, request)
    if not isinstance(reply, kind):
        raise ProtocolError(
            f"{peer} sent an unexpected {type(reply).__name__}; expected {kind.__name__}"
        )
    return reply


def sound_records(
    peer: str, keys: Sequence[bytes]
) -> Generator[Effect, Any, list[tuple[bytes, bytes | None]]]:
    """Return the records of one replica under storage keys, None where it has none.

    Keys whose record is corrupt there are left out, and so are the rest once the peer fails.
    """
    found: list[tuple[bytes, bytes | None]] = []
    while keys:
        try:
            reply = yield from ask(peer, Pull(Frame(codec.pack_blobs(keys))), Records)
        except DStashError:
            return found
        records = codec.unpack_optional_blobs(reply.records)
        corrupt = set(reply.corrupt)
        for position, (key, record) in enumerate(zip(keys, records, strict=False)):
            if position not in corrupt and (record is None or is_sound(key, record)):
                found.append((key, record))
        if not records:
            return found
        keys = keys[len(records) :]
    return found


def newer_on_peer(
    replica: Replica, fingerprints: Mapping[bytes, Fingerprint]
) -> Generator[Effect, Any, list[bytes]]:
    """Return the storage keys whose record may be newer on the peer than here."""
    newer: list[bytes] = []
    offered = list(fingerprints.items())
    step = replica.local_partitions.slice_records
    for begin in range(0, len(offered), step):
        with replica.local_partitions.snapshot() as snapshot:
            for storage_key, fingerprint in offered[begin : begin + step]:
                record = snapshot.get(storage_key)
                if record is None or _may_lose(record, fingerprint):
                    newer.append(storage_key)
        yield Pause()
    return newer


class Pulled(NamedTuple):
    """The result of a pull: the records moved, and those refused here or corrupt at the source."""

    moved: int
    refused: dict[bytes, DStashError]

    def check(self) -> int:
        """Return how many records moved; raise the first refusal if there is any."""
        for error in self.refused.values():
            raise error
        return self.moved


def pull(
    replica: Replica,
    source: str,
    keys: list[bytes],
    throttle: Throttle,
    horizons: Mapping[int, Stamp],
    take_in: Take | None = None,
) -> Generator[Effect, Any, Pulled]:
    """Fetch records. A refused or corrupt record does not delay the rest.

    Args:
        horizons: the horizons of the source, by partition. Records that are reapable there are
            skipped, because the source has reaped them.
        take_in: merges records; ``take`` without it.
    """
    pulled = Pulled(0, {})
    while keys:
        batch, rest = keys[:_MAX_REPAIR_RECORDS], keys[_MAX_REPAIR_RECORDS:]
        began = replica.now()
        reply = yield from ask(source, Pull(Frame(codec.pack_blobs(batch))), Records)
        records = codec.unpack_optional_blobs(reply.records)
        if not records:
            raise ProtocolError(f"{source} sent an empty reply to a pull")
        corrupt = CorruptRecord(f"{source} has a corrupt record; it must be repaired first")
        pulled.refused.update((batch[position], corrupt) for position in reply.corrupt)
        entries = [
            (key, record)
            for key, record in zip(batch, records, strict=False)
            if record is not None and not is_reapable_at(record, horizons.get(partition_in(key), 0))
        ]
        refusal = yield from (take_in or take)(entries)
        if refusal is None:
            pulled = pulled._replace(moved=pulled.moved + len(entries))
        else:
            pulled.refused.update((key, refusal) for key, _ in entries)
        yield from throttle.take_in(entries)
        yield _rest(replica, began)
        keys = batch[len(records) :] + rest
    return pulled


def take(entries: Entries) -> Generator[Effect, Any, DStashError | None]:
    """Merge records; returns the error if some were refused, else None.

    Raises:
        DStashError: the error is not one of single records.
    """
    try:
        if entries:
            yield Merge(entries)
    except (Busy, ClockSkew, CorruptRecord, DiskFull) as error:
        return error
    return None
