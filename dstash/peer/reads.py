"""Answering reads of clients: from one snapshot each, with what is damaged reported."""

from __future__ import annotations

from typing import Final

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.errors import ProtocolError
from dstash.limits import MAX_FRAME_BYTES, MAX_KEYS_PER_FRAME, PARTITIONS
from dstash.peer.lookups import fetch, look_up
from dstash.peer.scan_pages import PageBuilder, Span
from dstash.peer.telemetry.meters import Meters
from dstash.store.interface import Snapshot
from dstash.store.record import Keyspace, locate
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
from dstash.wire.shapes import Message

Read = Lookup | Fetch | Scan | ScanKeys | Count

#: A plain number: arithmetic with flags takes longer than all the rest of counting.
_VALUES: Final = Want.VALUES.value


class Reader:
    """Reads what a peer holds.

    Args:
        holdings: where it is, and where damage is reported.
        meters: count the keys.
    """

    def __init__(self, local_partitions: LocalPartitions, meters: Meters) -> None:
        self._local_partitions = local_partitions
        self._meters = meters

    def read(self, message: Read, space: Keyspace, now: int) -> Message:
        """Return the answer.

        Raises:
            Misrouted: a key, or a partition, that is not held here.
            CorruptRecord: a page begins with a damaged record.
            ProtocolError: the request is malformed.
        """
        with self._local_partitions.store.snapshot() as snapshot:
            if isinstance(message, Lookup | Fetch):
                return self._keys(message, snapshot, space, now)
            return self._page(PageBuilder(snapshot, space, _span(message, now)))

    def _keys(
        self, message: Lookup | Fetch, snapshot: Snapshot, space: Keyspace, now: int
    ) -> Message:
        keys = codec.unpack_keys(message.keys)
        answer: Values | Records
        horizons = self._local_partitions.horizons
        if isinstance(message, Lookup):
            if message.want & _VALUES:  # else it only checks what another replica answers
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


def _span(message: Scan | ScanKeys | Count, now: int) -> Span:
    packed = message.partitions
    if len(packed) % 2 or len(packed) > 2 * PARTITIONS:
        raise ProtocolError("partitions are not a sequence of 16-bit numbers")
    partitions = [int.from_bytes(packed[i : i + 2], "big") for i in range(0, len(packed), 2)]
    if max(partitions, default=0) >= PARTITIONS:
        raise ProtocolError(f"a partition is not below {PARTITIONS}")
    until, moment = b"", now
    if isinstance(message, Count) and message.digest:
        until, moment = message.until, message.moment or now
    return Span(
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
