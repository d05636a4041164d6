"""Answers to look-ups of one key, the most frequent requests of a cache, in few steps.

The dispatch of a request (``core.py``) takes longer than such a look-up. ``ShortReads`` answers
those that need none of it: the request has the current epoch, the peer serves reads, and the key
has no record or a live value. Everything else is left to the dispatch, which gives the same answer:
``tests/peer/short/test_reads.py`` compares the bytes.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from xxhash import xxh3_64_digest, xxh3_64_intdigest, xxh3_128_digest

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.view import View
from dstash.errors import ProtocolError
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.checks import Admission, Readiness
from dstash.peer.keyspaces import Keyspaces
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
from dstash.store.register.ballot import SIGN
from dstash.wire import codec
from dstash.wire.messages import Lookup, Values, Want
from dstash.wire.protocol import is_spoken

#: The fields of the header of a ``Lookup`` without a trace.
_HEADER_FIELDS: Final = 7
_MAX_INDEXES: Final = 32
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
        peer: its id.
        local_partitions: the records.
        keyspaces: by index.
        admission: a request passes it unchecked only where no check could refuse it.
        health: whether the peer serves.
        backlog: notes each answer, as it does each admitted request.
        meters: count requests and keys.
    """

    def __init__(
        self,
        peer: str,
        local_partitions: LocalPartitions,
        keyspaces: Keyspaces,
        *,
        admission: Admission,
        health: Readiness,
        backlog: Backlog,
        meters: Meters,
    ) -> None:
        self._peer = peer
        self._local_partitions = local_partitions
        self._keyspaces = keyspaces
        self._admission = admission
        self._health = health
        self._backlog = backlog
        self._meters = meters
        #: The epoch whose reads this peer serves; 0: none.
        self._epoch = 0
        self._spaces: dict[str, Keyspace] = {}

    def install(self, view: View) -> None:
        """Take a new view."""
        self._spaces.clear()
        member = view.members.get(self._peer)
        serves = view.topology.formed and member is not None and member.synced
        self._epoch = view.epoch if serves else 0

    def answer(self, sender: bytes, parts: list[bytes], now: int) -> list[bytes] | None:
        """Return the frames of the answer; None: the message needs the dispatch.

        Args:
            sender: the routing id of the connection.
            parts: the frames of a message of any kind.
            now: this peer's own clock, in milliseconds since 1970.
        """
        if len(parts) != 2:
            return None
        body = parts[1]
        # One byte string of up to 255 bytes (msgpack's bin 8) in an array.
        if len(body) <= 3 or body[:2] != b"\x91\xc4" or len(body) != 3 + body[2]:
            return None
        try:
            header = codec.unpack_header(parts[0])
        except ProtocolError:
            return None
        if len(header) != _HEADER_FIELDS or header[1] != Lookup.KIND or not self._serves(header):
            return None
        protocol, _, correlation, epoch, moment, index, want = header
        plan, space = _PLANS[want], self._spaces.get(index) or self._learn(index)
        if (moment and moment < now) or space is None or self._admission.unread.defers(sender):
            return None
        found = self._find(body[3:], space, plan, now)
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

    def _serves(self, header: list[Any]) -> bool:
        """Whether the fields of a look-up are valid, and no check can refuse it."""
        protocol, kind, correlation, epoch, moment, index, want = header
        health = self._health
        return (
            type(protocol) is int
            and type(kind) is int
            and type(correlation) is int
            and type(epoch) is int
            and type(moment) is int
            and type(want) is int
            and type(index) is str
            and epoch == self._epoch > 0
            and want in _PLANS
            and correlation >= 0
            and moment >= 0
            and is_spoken(protocol)
            and not health.stopping
            and health.not_ready is None
            and self._admission.authority is None
            and self._local_partitions.freshness_confirmed
            and not self._local_partitions.drops.unswept
        )

    def _learn(self, index: str) -> Keyspace | None:
        """Return the keyspace of an index if it was used before; registers have another path."""
        space = None if index.startswith(SIGN) else self._keyspaces.known(index)
        if space is not None:
            if len(self._spaces) >= _MAX_INDEXES:
                self._spaces.clear()
            self._spaces[index] = space
        return space

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
