"""A put or a delete of one key in few steps; see ``call.py``.

It sends the requests of a ``PutOperation`` or ``DeleteOperation``, stamped in the same way, and
counts the acks. The operation continues with the same version, and with the acks so far.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Final

from dstash.client.operations.base import take_late_answer
from dstash.client.operations.batching import Item
from dstash.client.operations.short.call import ShortCall, plain_header
from dstash.client.operations.versions import FIRST_ATTEMPT
from dstash.client.operations.writes import (
    TTL_TOLERANCE_MS,
    DeleteOperation,
    PutOperation,
    WriteChunk,
    WriteOperation,
)
from dstash.client.results import BatchResult
from dstash.client.routing import WriteSet
from dstash.client.session import Send, Session
from dstash.client.sightings import Sighting
from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.cluster.topology.view import View
from dstash.store.record import partition_of
from dstash.types import NEVER, Level
from dstash.version import Version, newest_stamp
from dstash.wire import codec
from dstash.wire.envelope import Envelope
from dstash.wire.messages import Delete, Put, Stored
from dstash.wire.protocol import is_spoken
from dstash.wire.shapes import EMPTY, Frame

#: The fields of the header of a ``Stored`` without unsure keys.
_HEADER_FIELDS: Final = 7


def _plain_ack(parts: list[bytes]) -> tuple[int, int, bytes] | None:
    """Return correlation id, clock and earlier state in a message if it is a plain ack."""
    header = plain_header(parts, 1, Stored.KIND, _HEADER_FIELDS)
    if header is None:
        return None
    protocol, _, correlation, _, moment, rejected, existed = header
    is_plain = (
        (type(correlation), type(moment), type(existed)) == (int, int, bytes)
        and rejected == []
        and is_spoken(protocol)
        and moment >= 0
    )
    return (correlation, moment, existed) if is_plain else None


def take_late_ack(session: Session, peer: str, parts: list[bytes]) -> bool:
    """Process a message if it is the plain ack of an earlier write; return whether it is."""
    ack = _plain_ack(parts)
    if ack is None or not session.outstanding.acked(ack[0]):
        return False
    session.heard(peer)
    return True


class ShortWrite(ShortCall):
    """Writes one key; the result is a ``BatchResult``.

    Args:
        session: the state that the calls of this client share.
        deadline: of the call, in milliseconds of the session's wall clock.
        index: of the key.
        level: how many replicas must store it.
        item: to write.
    """

    patience = WriteChunk.patience
    #: Whether its operation reads clocks that are unread; False if the transport does that.
    reads_clocks = True

    def __init__(
        self, session: Session, deadline: int, index: str, level: Level, item: Item
    ) -> None:
        super().__init__(session, deadline, index)
        self.level = level
        self.item = item
        #: The version of the requests; empty until they are sent.
        self.version: Version = b""
        self._view: View | None = None
        self._targets: WriteSet
        self._needed = 0
        self._keys = EMPTY
        #: What each replica that acked reported of the earlier record.
        self._acks: dict[str, bytes] = {}
        self._outcome = BatchResult()

    @abstractmethod
    def operation(self) -> WriteOperation:
        """Return the operation that makes this call when it is not short."""

    @abstractmethod
    def _request(self) -> tuple[int, tuple[Any, ...], tuple[Frame, ...]]:
        """Stamp the write; return kind, fields and body frames of the request."""

    @property
    def is_outdated(self) -> bool:
        """Whether the stored record must be written again, by the current clock readings."""
        return False

    # -- for transports

    def more(self, now: int) -> list[Send]:
        """Send the requests."""
        if self._general is not None:
            return self._general.more(now)
        session = self.session
        view = session.calm_view(now)
        if view is None or self.trace or session.unread_clocks():
            return self._continued().more(now)
        targets = session.write_targets(view)[partition_of(self.item[1])]
        is_plain = targets.old == targets.new and targets.counted.issuperset(targets.peers)
        if not targets.peers or not is_plain:
            return self._continued().more(now)
        return self._ask(view, targets, now)

    def receive(self, peer: str, envelope: Envelope, now: int) -> list[Send]:
        """Process a message from a peer."""
        if self._is_about_others(envelope):
            self._hear(peer, now)
            return take_late_answer(self.session, peer, envelope, now)
        message, correlation = envelope.message, envelope.correlation
        if (
            self._general is None
            and self._asked.get(correlation) == peer
            and isinstance(message, Stored)
            and not message.rejected
            and not message.unsure
        ):
            return self._take(peer, correlation, envelope.moment, message.existed, now)
        return self._continued().receive(peer, envelope, now)

    def receive_frames(self, peer: str, parts: list[bytes], now: int) -> list[Send] | None:
        """Process the frames of a plain ack, of this write or an earlier one; else return None."""
        ack = _plain_ack(parts) if self._general is None else None
        if ack is None:
            return None
        correlation, moment, existed = ack
        if self._asked.get(correlation) == peer:
            return self._take(peer, correlation, moment, existed, now)
        if self.session.outstanding.acked(correlation):
            self._hear(peer, now)
            return []
        return None

    def result(self) -> BatchResult:
        """Return the outcome."""
        outcome: BatchResult
        outcome = self._outcome if self._has_ended else self._continued().result()
        return outcome

    # -- inside

    def _ask(self, view: View, targets: WriteSet, now: int) -> list[Send]:
        session = self.session
        self._view, self._targets, self._sent_at = view, targets, now
        self._needed = self.level.needed(len(targets.peers))
        self._keys = Frame(codec.pack_blobs((self.item[1],)))
        kind, fields, body = self._request()
        sends = []
        for peer in targets.peers:
            correlation = session.next_correlation()
            self._asked[correlation] = peer
            sends.append(
                session.short_request(
                    peer, correlation, self.deadline, view.epoch, kind, fields, body
                )
            )
        return sends

    def _take(
        self, peer: str, correlation: int, moment: int, existed: bytes, now: int
    ) -> list[Send]:
        """Count an ack. The operation counts the last one if the write needs more steps then."""
        session = self.session
        self._hear(peer, now)
        session.learn_clock(peer, moment, self._sent_at, now)
        sighting = self._stores.get(peer)
        if sighting is not None:
            sighting.acked(newest_stamp(self.version))
        is_last = len(self._acks) + 1 >= self._needed
        # Replicas that missed the write need hints while a peer is suspect.
        if is_last and (session.calm_view(now) is None or self.is_outdated):
            answer = Envelope(correlation, 0, 0, Stored([], existed))
            return self._continued().receive(peer, answer, now)
        del self._asked[correlation]
        self._acks[peer] = existed[:1]
        return self._end(now) if is_last else []

    def _end(self, now: int) -> list[Send]:
        """Set the result; late answers of replicas are still processed after the call."""
        self._has_ended = True
        self._outcome.stored = 1
        self._outcome.deleted = int(any(map(any, self._acks.values())))
        late, self._asked = self._asked, {}
        if not late:
            return []
        session, holders = self.session, tuple(sorted(self._acks))
        missed = session.outstanding.add(late.items(), self.index, self._keys, holders, now)
        return session.hints(missed, now)

    def _hand_over(self, stores: dict[str, Sighting]) -> WriteOperation:
        """Return the operation that continues this call, with its requests and acks."""
        general = self.operation()
        general.trace, general.stores = self.trace, stores
        general.reads_clocks = self.reads_clocks
        if self._view is not None and not self._has_ended:
            chunk = WriteChunk(
                general,
                self._targets,
                self._view.epoch,
                [self.item],
                self.version,
                0,
                indeterminate=False,
                earlier=FIRST_ATTEMPT,
            )
            chunk.resume(self._settings(self._view))
            general.adopt(chunk, self._asked, self._sent_at)
            for peer, existed in self._acks.items():
                chunk.answered(peer, Stored([], existed), self._sent_at)
        return general

    def _settings(self, view: View) -> IndexSettings | None:
        """Return the settings that peers apply to this write."""
        return None


class ShortPut(ShortWrite):
    """Stores a payload that expires ``ttl`` milliseconds from now (None: never)."""

    def __init__(
        self,
        session: Session,
        deadline: int,
        index: str,
        level: Level,
        item: Item,
        ttl: int | None,
    ) -> None:
        super().__init__(session, deadline, index, level, item)
        self.ttl = ttl
        #: The expiry that was sent.
        self.expiry = NEVER
        self._offset = 0

    def operation(self) -> PutOperation:
        """Return the operation that makes this call when it is not short."""
        general = PutOperation(
            self.session, self.deadline, self.index, self.level, [self.item], self.ttl
        )
        general.expire_at(self.expiry, self._offset)
        return general

    @property
    def is_outdated(self) -> bool:
        """Whether the clocks of the peers turned out to be set since the expiry was computed."""
        if self.ttl is None:
            return False
        return abs(self.session.offset - self._offset) > TTL_TOLERANCE_MS

    def _request(self) -> tuple[int, tuple[Any, ...], tuple[Frame, ...]]:
        session = self.session
        if self.ttl is not None:
            self._offset = session.offset
            self.expiry = session.cluster_time() + self.ttl
        self.version = session.new_version()
        payloads = Frame(codec.pack_blobs((self.item[2],)))
        return Put.KIND, (self.index, self.version, self.expiry), (self._keys, payloads)

    def _settings(self, view: View) -> IndexSettings | None:
        """Return the settings of the index."""
        return view.index_settings.get(self.index)


class ShortDelete(ShortWrite):
    """Writes a tombstone."""

    def operation(self) -> DeleteOperation:
        """Return the operation that makes this call when it is not short."""
        return DeleteOperation(self.session, self.deadline, self.index, self.level, [self.item])

    def _request(self) -> tuple[int, tuple[Any, ...], tuple[Frame, ...]]:
        self.version = self.session.new_version()
        return Delete.KIND, (self.index, self.version), (self._keys,)
