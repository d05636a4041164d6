"""A look-up of one key in few steps; see ``call.py``.

It sends the requests of a ``LookupOperation``. Answers that differ are not plain: the operation
compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dstash.client.operations.base import take_late_answer
from dstash.client.operations.reads import Decode, LookupOperation, ReadChunk
from dstash.client.operations.short.call import ShortCall, plain_header
from dstash.client.routing import Peers
from dstash.client.session import Send, Session
from dstash.client.sightings import Sighting
from dstash.errors import DStashError
from dstash.store.record import partition_of
from dstash.types import Level
from dstash.wire import codec
from dstash.wire.envelope import Envelope
from dstash.wire.keys import Key
from dstash.wire.messages import Lookup, Values, Want
from dstash.wire.protocol import CONTENT_DIGESTS, is_spoken
from dstash.wire.shapes import Frame

#: Plain numbers, because arithmetic with flags is slow.
_VALUES: Final = Want.VALUES.value
_DIGEST: Final = Want.DIGEST.value
_CONTENT: Final = Want.CONTENT.value

_ALONE: Final = [_VALUES]

#: The fields of the header of ``Values``.
_HEADER_FIELDS: Final = 9


class PlainAnswer(NamedTuple):
    """The fields of a ``Values`` without corrupt records."""

    correlation: int
    moment: int
    digest: bytes
    missing: list[int]
    values: bytes
    #: How many keys were looked up.
    answered: int = 1


def plain_answer(parts: list[bytes]) -> PlainAnswer | None:
    """Return the fields of a message if it is an answer to a look-up and plain, else None."""
    header = plain_header(parts, 2, Values.KIND, _HEADER_FIELDS)
    if header is None:
        return None
    protocol, _, correlation, _, moment, answered, digest, missing, corrupt = header
    is_plain = (
        (type(correlation), type(moment), type(digest)) == (int, int, bytes)
        and type(answered) is int
        and type(missing) is list
        and corrupt == []
        and is_spoken(protocol)
        and moment >= 0
    )
    if not is_plain:
        return None
    return PlainAnswer(correlation, moment, digest, missing, parts[1], answered)


def wants(session: Session, targets: Peers) -> list[int]:
    """Return the bits of ``Want`` for each target: the first sends the value."""
    if len(targets) < 2:
        return _ALONE
    compared = _DIGEST | _CONTENT if session.all_speak(targets, CONTENT_DIGESTS) else _DIGEST
    return [_VALUES | compared] + [compared] * (len(targets) - 1)


class ShortLookup(ShortCall):
    """Looks up one key.

    The result is a dictionary with the key and its value, or an empty one.

    Args:
        session: the state that the calls of this client share.
        deadline: of the call, in milliseconds of the session's wall clock.
        index: of the key.
        key: to look up.
        encoded: the encoded key.
        level: how many replicas must agree.
        decode: decodes values.
    """

    def __init__(
        self,
        session: Session,
        deadline: int,
        index: str,
        key: Key,
        encoded: bytes,
        level: Level,
        decode: Decode,
    ) -> None:
        super().__init__(session, deadline, index)
        self.key = key
        self.level = level
        self.decode = decode
        self._encoded = encoded
        self._targets: Peers = ()
        self._epoch = 0
        self._answers: dict[str, PlainAnswer] = {}
        self._found: dict[Key, Any] = {}

    # -- for transports

    def more(self, now: int) -> list[Send]:
        """Send the requests."""
        if self._general is not None:
            return self._general.more(now)
        table = self.session.calm_table(self.level, now)
        if table is None or self.trace:
            return self._continued().more(now)
        targets = table[partition_of(self._encoded)]
        if not targets:
            return self._continued().more(now)
        return self._ask(targets, table.epoch, now)

    def receive(self, peer: str, envelope: Envelope, now: int) -> list[Send]:
        """Process a message from a peer."""
        if self._is_about_others(envelope):
            self._hear(peer, now)
            return take_late_answer(self.session, peer, envelope, now)
        message = envelope.message
        if (
            self._general is None
            and envelope.correlation in self._asked
            and isinstance(message, Values)
            and message.answered == 1
            and not message.corrupt
        ):
            answer = PlainAnswer(
                envelope.correlation,
                envelope.moment,
                message.digest,
                message.missing,
                message.values,
            )
            return self._take(peer, answer, now)
        return self._continued().receive(peer, envelope, now)

    def receive_frames(self, peer: str, parts: list[bytes], now: int) -> list[Send] | None:
        """Process the frames of a message if they are an answer to this call; else return None."""
        answer = plain_answer(parts) if self._general is None else None
        if answer is None or answer.correlation not in self._asked or answer.answered != 1:
            return None
        return self._take(peer, answer, now)

    def result(self) -> dict[Key, Any]:
        """Return the value found, by its key."""
        found: dict[Key, Any] = self._found if self._has_ended else self._continued().result()
        return found

    def resume(self, targets: Peers, epoch: int, asked: Mapping[int, str], sent_at: int) -> None:
        """Take over requests that were sent.

        Args:
            targets: that were asked; the first for the value.
            epoch: by which they were routed.
            asked: peer by the correlation id of its request.
            sent_at: when, by the session's wall clock.
        """
        self._targets, self._epoch, self._sent_at = targets, epoch, sent_at
        self._asked.update(asked)

    # -- inside

    def _ask(self, targets: Peers, epoch: int, now: int) -> list[Send]:
        session = self.session
        self._targets, self._epoch, self._sent_at = targets, epoch, now
        body = (codec.pack_blobs((self._encoded,)),)
        sends = []
        for peer, want in zip(targets, wants(session, targets), strict=True):
            correlation = session.next_correlation()
            self._asked[correlation] = peer
            fields = (self.index, want)
            sends.append(
                session.short_request(
                    peer, correlation, self.deadline, epoch, Lookup.KIND, fields, body
                )
            )
        return sends

    def _take(self, peer: str, answer: PlainAnswer, now: int) -> list[Send]:
        self._hear(peer, now)
        self.session.learn_clock(peer, answer.moment, self._sent_at, now)
        self._answers[peer] = answer
        if len(self._answers) < len(self._targets):
            del self._asked[answer.correlation]
            return []
        if self._deliver():
            self._asked.clear()
            return []
        del self._answers[peer]  # the operation processes the last answer itself
        envelope = Envelope(answer.correlation, 0, 0, _values(answer))
        return self._continued().receive(peer, envelope, now)

    def _deliver(self) -> bool:
        """Set the result, if the answers agree and the value can be decoded."""
        answers = self._answers
        first = answers[self._targets[0]]
        if any(answer.digest != first.digest for answer in answers.values()):
            return False
        if first.missing == [0]:
            self._has_ended = True
            return True
        if first.missing:
            return False
        undecodable: dict[Any, Any] = {}
        try:
            decoded = self.decode(first.values, [self.key], undecodable)
        except DStashError:
            return False
        if undecodable or len(decoded) != 1:
            return False
        self.session.learn_size(len(first.values))
        self._found = {self.key: decoded[0]}
        self._has_ended = True
        return True

    def _hand_over(self, stores: dict[str, Sighting]) -> LookupOperation:
        """Return the operation that continues this call, with its requests and answers."""
        general = LookupOperation(
            self.session,
            self.deadline,
            self.index,
            [self.key],
            self.level,
            self.decode,
            [self._encoded],
        )
        general.trace, general.stores = self.trace, stores
        if self._targets and not self._has_ended:
            chunk = ReadChunk(general, self._targets, [self.key], 0, self._epoch)
            general.adopt(chunk, self._asked, self._sent_at)
            for peer, answer in self._answers.items():
                chunk.answered(peer, _values(answer), self._sent_at)
        return general


def _values(answer: PlainAnswer) -> Values:
    return Values(1, answer.digest, answer.missing, [], Frame(answer.values))
