"""Reads of clients: look-ups, fetches and scan pages, each answered from one snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from dstash import loops
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.errors import ProtocolError
from dstash.limits import MAX_FRAME_BYTES, MAX_KEYS_PER_FRAME, PARTITIONS
from dstash.peer.scan_pages import PageBuilder, PageRequest
from dstash.peer.telemetry.meters import Meters
from dstash.store.digest import is_reapable_at
from dstash.store.interface import Snapshot
from dstash.store.record import (
    ABSENT_HEAD,
    CHECKSUM_END,
    HEAD_BYTES,
    MASK,
    VERSION_END,
    Keyspace,
    is_intact,
    is_intact_under,
    is_live_head,
    partition_of,
)
from dstash.store.register.header import value_of
from dstash.store.sealing import locate
from dstash.version import Stamp
from dstash.wire import codec
from dstash.wire.messages import (
    Count,
    Fetch,
    Lookup,
    Records,
    Scan,
    ScanKeys,
    Values,
    Want,
)
from dstash.wire.shapes import Frame, Message

Read = Lookup | Fetch | Scan | ScanKeys | Count

#: A reply that grows beyond this is cut; the client requests the rest.
REPLY_BYTES: Final = 4 * 1024 * 1024

#: The most bytes of records whose heads one request reads: to copy them takes milliseconds.
HEADS_BYTES: Final = 32 * 1024 * 1024

#: Plain numbers: arithmetic with flags takes longer than to look a key up.
_VALUES: Final = Want.VALUES.value
_DIGEST: Final = Want.DIGEST.value
_CONTENT: Final = Want.CONTENT.value

#: How many records are read between two checks of their size.
_RUN: Final = 32


class Reader:
    """Answers the reads of clients.

    Args:
        local_partitions: the records; corrupt records are reported to it.
        meters: counts the keys.
    """

    def __init__(self, local_partitions: LocalPartitions, meters: Meters) -> None:
        self._local_partitions = local_partitions
        self._meters = meters

    def read(self, message: Read, space: Keyspace, now: int) -> Message:
        """Return the answer.

        Raises:
            Misrouted: this peer holds no replica of a key or a partition.
            CorruptRecord: a page begins with a corrupt record.
            ProtocolError: the request is malformed.
        """
        with self._local_partitions.snapshot() as snapshot:
            if isinstance(message, Lookup | Fetch):
                return self._keys(message, snapshot, space, now)
            drops = self._local_partitions.drops
            covers = drops.floors.covers if drops.unswept else None
            return self._page(PageBuilder(snapshot, space, _page_request(message, now), covers))

    def _keys(
        self, message: Lookup | Fetch, snapshot: Snapshot, space: Keyspace, now: int
    ) -> Message:
        keys = codec.unpack_keys(message.keys)
        answer: Values | Records
        horizons = self._local_partitions.horizons
        if isinstance(message, Lookup):
            if message.want & _VALUES:  # else it only checks the answer of another replica
                self._meters.read_keys.observe(len(keys))
            answer = look_up(snapshot, space, keys, message.want, now, horizons)
        else:
            answer = fetch(snapshot, space, keys, horizons)
        if answer.corrupt:
            corrupt = [keys[place] for place in answer.corrupt]
            self._local_partitions.corruption.report(locate(space, corrupt))
        return answer

    def _page(self, builder: PageBuilder) -> Message:
        try:
            return builder.build()
        finally:
            self._local_partitions.corruption.report(builder.corrupt)


def _page_request(message: Scan | ScanKeys | Count, now: int) -> PageRequest:
    packed = message.partitions
    if len(packed) % 2 or len(packed) > 2 * PARTITIONS:
        raise ProtocolError("partitions are not a sequence of 16-bit numbers")
    partitions = [int.from_bytes(packed[i : i + 2], "big") for i in range(0, len(packed), 2)]
    if max(partitions, default=0) >= PARTITIONS:
        raise ProtocolError(f"a partition is not below {PARTITIONS}")
    until, moment = b"", now
    if isinstance(message, Count) and message.digest:
        until, moment = message.until, message.moment or now
    return PageRequest(
        message.prefix,
        partitions,
        message.after,
        max(1, min(message.max_keys, MAX_KEYS_PER_FRAME)),
        max(1, min(message.max_bytes, MAX_FRAME_BYTES // 4)),
        moment,
        with_keys=not isinstance(message, Count),
        with_values=isinstance(message, Scan),
        with_digest=message.digest,
        until=until,
    )


def look_up(
    snapshot: Snapshot,
    space: Keyspace,
    keys: Sequence[bytes],
    want: int,
    now: int,
    horizons: Sequence[Stamp],
) -> Values:
    """Answer a look-up.

    Args:
        horizons: by partition. A record that tombstone GC may drop counts as absent in the digest,
            because some replicas have dropped it already.

    Raises:
        Misrouted: this peer holds no replica of a key.
    """
    if want & _VALUES:
        return _look_up_values(snapshot, space, keys, want, now, horizons)
    return _look_up_heads(snapshot, space, keys, want, now, horizons)


def _look_up_heads(
    snapshot: Snapshot,
    space: Keyspace,
    keys: Sequence[bytes],
    want: int,
    now: int,
    horizons: Sequence[Stamp],
) -> Values:
    """Answer a look-up without values.

    A tombstone up to its horizon counts as absent. Records that look like live ones without expiry
    are not verified: a corrupt version changes the digest, and a corrupt payload is found when a
    client reads it.

    It answers fewer keys if the records are large, because each record is copied as a whole.
    """
    missing: list[int] = []
    corrupt: list[int] = []

    def judge(place: int, record: bytes) -> bytes:
        head, key = record[:HEAD_BYTES], keys[place]
        if not is_intact(record, key, space.salt):
            corrupt.append(place)
            head = ABSENT_HEAD
        elif is_reapable_at(record, horizons[partition_of(key)]):
            head = ABSENT_HEAD
        if not is_live_head(head[VERSION_END:], now):
            missing.append(place)
        return head

    begin = _hashed_from(want)
    located = locate(space, keys)
    heads = loops.read_heads(snapshot.get, located, HEADS_BYTES, begin, judge, missing)
    answered = len(heads) // (VERSION_END - begin)
    digest = xxh3_128_digest(heads) if want & _DIGEST else b""
    return Values(answered, digest, missing, corrupt, Frame(codec.array_header(0)))


def _look_up_values(
    snapshot: Snapshot,
    space: Keyspace,
    keys: Sequence[bytes],
    want: int,
    now: int,
    horizons: Sequence[Stamp],
) -> Values:
    records = _read(snapshot, space, keys)
    frame, missing, corrupt = loops.join_live(space.salt, keys, records, now, value_of)
    digest = b""
    if want & _DIGEST:
        for place in missing:  # no other record can be a tombstone
            record = records[place]
            if record is not None and is_reapable_at(record, horizons[partition_of(keys[place])]):
                records[place] = None
        digest = digest_of(records, want)
    return Values(len(records), digest, missing, corrupt, Frame(frame))


def fetch(
    snapshot: Snapshot, space: Keyspace, keys: Sequence[bytes], horizons: Sequence[Stamp]
) -> Records:
    """Answer a fetch of whole records; corrupt records are omitted and listed.

    Tombstones up to the horizon of their partition are left out, too: other replicas may have
    dropped them, and do not need them back.
    """
    records = _read(snapshot, space, keys)
    corrupt: list[int] = []
    for place, record in enumerate(records):
        if record is None:
            continue
        number = xxh3_64_intdigest(keys[place])
        if not is_intact_under(record, number ^ space.salt):
            corrupt.append(place)
            records[place] = None
        elif is_reapable_at(record, horizons[number & MASK]):
            records[place] = None
    return Records(corrupt, Frame(codec.pack_blobs(records)))


def digest_of(records: Sequence[bytes | None], want: int = 0) -> bytes:
    """Return a digest over the versions of records, in order.

    If ``want`` includes ``CONTENT``, it covers their checksums, too.
    """
    return xxh3_128_digest(loops.join_heads(records, _hashed_from(want)))


def _hashed_from(want: int) -> int:
    """Return where the part of a record begins that a digest covers; it ends with the version."""
    return 0 if want & _CONTENT else CHECKSUM_END


def _read(snapshot: Snapshot, space: Keyspace, keys: Sequence[bytes]) -> list[bytes | None]:
    """Return the records of keys; fewer if the reply would be too large.

    They are read a few at a time: a request has many keys, and values may be large.
    """
    located = locate(space, keys)
    records: list[bytes | None] = []
    weight = 0
    for begin in range(0, len(keys), _RUN):
        run = list(map(snapshot.get, located[begin : begin + _RUN]))
        records += run
        weight += loops.total_size(run)
        if weight > REPLY_BYTES:
            return records[: _fitting(records)]
    return records


def _fitting(records: Sequence[bytes | None]) -> int:
    weight = 0
    for place, record in enumerate(records):
        weight += len(record or b"")
        if weight > REPLY_BYTES:
            return max(1, place)
    return len(records)
