"""Answers to look-ups of one key, the most frequent requests of a cache, in few steps.

The dispatch of a request (``core.py``) takes longer than such a look-up. ``ShortReads`` answers
those that need none of it: the request has the current epoch, the peer serves reads, and the key
has no record or a live value. Everything else is left to the dispatch, which gives the same answer:
``tests/peer/short/test_reads.py`` compares the bytes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from xxhash import xxh3_64_digest, xxh3_64_intdigest, xxh3_128_digest

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.errors import ProtocolError
from dstash.limits import MAX_KEY_BYTES
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.checks import Admission
from dstash.peer.short.checks import ShortChecks
from dstash.peer.telemetry.meters import Meters
from dstash.store.digest import is_reapable_at
from dstash.store.record import (
    ABSENT_HEAD,
    CHECKSUM_END,
    HEAD_BYTES,
    MASK,
    PLAIN,
    VERSION_END,
    Keyspace,
    is_live_head,
)
from dstash.wire import codec
from dstash.wire.messages import Lookup, Values, Want

#: The fields of the header of a ``Lookup`` without a trace.
_HEADER_FIELDS: Final = 7
#: A larger record has an answer that may find no room.
_MAX_RECORD_BYTES: Final = 64 * 1024


class _Plan(NamedTuple):
    """What a look-up requests."""

    has_values: bool
    #: The part of a record that its digest covers; None: no digest.
    hashed: slice | None
    #: The key of the counter of requests.
    counted: tuple[str, str, str]


def _plan(want: int) -> _Plan:
    has_digest = bool(want & Want.DIGEST)
    level = "quorum" if has_digest else "one"
    begin = 0 if want & Want.CONTENT else CHECKSUM_END
    hashed = slice(begin, VERSION_END) if has_digest else None
    return _Plan(bool(want & Want.VALUES), hashed, (Lookup.__name__, level, "Answered"))


_PLANS: Final = {want: _plan(want) for want in range(8)}


class ShortReads:
    """Answers the look-ups of one peer that need no dispatch.

    Args:
        local_partitions: the records.
        checks: of requests for one key.
        admission: knows what clients have left unread.
        backlog: notes each answer, as it does each admitted request.
        meters: count requests and keys.
    """

    def __init__(
        self,
        local_partitions: LocalPartitions,
        checks: ShortChecks,
        *,
        admission: Admission,
        backlog: Backlog,
        meters: Meters,
    ) -> None:
        self._local_partitions = local_partitions
        self._checks = checks
        self._admission = admission
        self._backlog = backlog
        self._meters = meters

    def answer(self, sender: bytes, parts: list[bytes], now: int) -> list[bytes] | None:
        """Return the frames of the answer; None: the message needs the dispatch.

        Args:
            sender: the routing id of the connection.
            parts: the frames of a message of any kind.
            now: this peer's own clock, in milliseconds since 1970.
        """
        if len(parts) != 2:
            return None
        key = codec.only_blob(parts[1])
        if not key or len(key) > MAX_KEY_BYTES:
            return None
        try:
            header = codec.unpack_header(parts[0])
        except ProtocolError:
            return None
        if len(header) != _HEADER_FIELDS or header[1] != Lookup.KIND:
            return None
        protocol, _, correlation, epoch, moment, index, want = header
        checks = self._checks
        if type(want) is not int or not checks.passes(protocol, correlation, epoch, moment):
            return None
        plan, space = _PLANS.get(want), checks.space(index)
        if plan is None or space is None or (moment and moment < now):
            return None
        if self._admission.unread.defers(sender):
            return None
        found = self._find(key, space, plan, now)
        if found is None:
            return None
        digest, missing, values = found
        self._backlog.served()
        self._meters.requests[plan.counted] += 1
        if plan.has_values:
            self._meters.read_keys.observe(1)
        return [
            codec.pack_header(
                (protocol, Values.KIND, correlation, epoch, now, 1, digest, missing, [])
            ),
            values,
        ]

    def _find(
        self, key: bytes, space: Keyspace, plan: _Plan, now: int
    ) -> tuple[bytes, list[int], bytes] | None:
        """Return digest, missing places and values; None: the dispatch must look the key up."""
        number = xxh3_64_intdigest(key)
        prefix = space.prefixes[number & MASK]
        if prefix is None:
            return None
        record = self._local_partitions.store.get(prefix + key)
        hashed = plan.hashed
        if record is None:
            digest = b"" if hashed is None else xxh3_128_digest(ABSENT_HEAD[hashed])
            return digest, _FIRST, _NIL_VALUE if plan.has_values else _NO_VALUES
        tail = record[VERSION_END:HEAD_BYTES]
        if not HEAD_BYTES < len(record) <= _MAX_RECORD_BYTES or (
            tail != PLAIN and (tail[0] or not is_live_head(tail, now))
        ):
            return None
        # A record that tombstone GC may drop counts as absent where only its digest is requested.
        if tail != PLAIN and not plan.has_values:
            horizon = self._local_partitions.horizons[number & MASK]
            if is_reapable_at(record, horizon):
                return None
        # The head of a plain record is not verified where only its digest is requested: if it is
        # corrupt, the digests differ.
        is_verified = plan.has_values or tail != PLAIN
        if is_verified and (
            xxh3_64_digest(record[CHECKSUM_END:], number ^ space.salt) != record[:CHECKSUM_END]
        ):
            return None
        digest = b"" if hashed is None else xxh3_128_digest(record[hashed])
        return digest, _NONE, b"\x91" + record[HEAD_BYTES:] if plan.has_values else _NO_VALUES


#: The places of missing keys: the only key, or none.
_FIRST: Final = [0]
_NONE: Final[list[int]] = []
_NIL_VALUE: Final = b"\x91\xc0"
_NO_VALUES: Final = b"\x90"
