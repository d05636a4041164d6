"""A look-up of one key in few steps.

Most calls of a cache look up one key, the peers answer at once, and their answers agree. For such a
call the general ``LookupOperation`` takes more time than all messages. ``ShortLookup`` sends the
same requests. When anything else happens (no answer in time, a lost connection, an error,
answers that differ), it hands its requests and answers over to a ``LookupOperation``, which
continues as if it had sent them itself.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from dstash.client.operations.base import VIEWS, Call, take_late_answer
from dstash.client.operations.reads import Decode, LookupOperation, ReadChunk
from dstash.client.routing import Peers
from dstash.client.session import SILENCE_MS, Send, Session
from dstash.client.sightings import Sighting
from dstash.errors import DStashError, ProtocolError
from dstash.store.record import partition_of
from dstash.types import Level
from dstash.wire import codec
from dstash.wire.envelope import Envelope
from dstash.wire.keys import Key
from dstash.wire.messages import Values, Want
from dstash.wire.protocol import CONTENT_DIGESTS, is_spoken
from dstash.wire.shapes import Frame

#: Plain numbers, because arithmetic with flags is slow.
_VALUES: Final = Want.VALUES.value
_DIGEST: Final = Want.DIGEST.value
_CONTENT: Final = Want.CONTENT.value

#: The fields of the header of ``Values``.
_HEADER_FIELDS: Final = 9


class _Answer(NamedTuple):
    """The fields of a ``Values`` that counts one key and no corrupt record."""

    digest: bytes
    missing: list[int]
    values: bytes


class ShortLookup(Call):
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
        self.session = session
        self.deadline = deadline
        self.index = index
        self.key = key
        self.level = level
        self.decode = decode
        self.trace = ""
        self.error: DStashError | None = None
        self._encoded = encoded
        self._stores: dict[str, Sighting] = {}
        #: The operation that continues this call; None as long as the call is short.
        self._general: LookupOperation | None = None
        self._targets: Peers = ()
        self._epoch = 0
        self._sent_at = 0
        #: Peer by the correlation id of its request, and answer by peer.
        self._asked: dict[int, str] = {}
        self._answers: dict[str, _Answer] = {}
        self._found: dict[Key, Any] | None = None

    # -- for transports

    @property
    def is_running_short(self) -> bool:
        """Whether the call has not ended, and no operation has taken it over."""
        return self._general is None and self._found is None

    @property
    def stores(self) -> dict[str, Sighting]:
        """The store of each peer, as reported on the current connection."""
        return self._stores

    @stores.setter
    def stores(self, stores: dict[str, Sighting]) -> None:
        self._stores = stores
        if self._general is not None:
            self._general.stores = stores

    @property
    def done(self) -> bool:
        """Whether the call has ended."""
        return self._found is not None or (self._general is not None and self._general.done)

    @property
    def hungry(self) -> bool:
        """Whether ``more`` has something to send now."""
        if self._general is not None:
            return self._general.hungry
        return not self._asked and self._found is None

    def share(self, last_heard: dict[str, int]) -> None:
        """Share with all calls on the same connections when each peer last answered."""
        self._continued().share(last_heard)

    def more(self, now: int) -> list[Send]:
        """Send the requests."""
        if self._general is not None:
            return self._general.more(now)
        table = self.session.calm_table(self.level, now)
        targets = table[partition_of(self._encoded)] if table is not None else ()
        if not targets or self.trace:
            return self._continued().more(now)
        return self._ask(targets, now)

    def receive(self, peer: str, envelope: Envelope, now: int) -> list[Send]:
        """Process a message from a peer."""
        message = envelope.message
        if self._general is None and envelope.correlation in self._asked:
            if isinstance(message, Values) and message.answered == 1 and not message.corrupt:
                answer = _Answer(message.digest, message.missing, message.values)
                return self._take(peer, envelope.correlation, envelope.moment, answer, now)
        elif self._general is None and not isinstance(message, VIEWS):
            self.session.heard(peer)
            return take_late_answer(self.session, peer, envelope, now)
        return self._continued().receive(peer, envelope, now)

    def receive_frames(self, peer: str, parts: list[bytes], now: int) -> list[Send] | None:
        """Process the frames of a message if they are an answer to this call; else return None."""
        if self._general is not None or len(parts) != 2:
            return None
        try:
            header = codec.unpack_header(parts[0])
        except ProtocolError:
            return None
        if len(header) != _HEADER_FIELDS or header[1] != Values.KIND:
            return None
        protocol, _, correlation, _, moment, answered, digest, missing, corrupt = header
        is_plain = (
            (type(correlation), type(moment), type(digest)) == (int, int, bytes)
            and correlation in self._asked
            and (answered, corrupt) == (1, [])
            and is_spoken(protocol)
            and moment >= 0
        )
        if not is_plain:
            return None
        return self._take(peer, correlation, moment, _Answer(digest, missing, parts[1]), now)

    def lost(self, peer: str, now: int, reason: str = "connection lost") -> list[Send]:
        """Process that the connection to a peer broke."""
        return self._continued().lost(peer, now, reason)

    def unsent(self, send: Send, now: int, reason: str = "not connected") -> list[Send]:
        """Process that a request could not be sent."""
        return self._continued().unsent(send, now, reason)

    def tick(self, now: int) -> list[Send]:
        """Let the operation continue, if an answer is late or the call expires."""
        if self._general is None and now < self.wakeup():
            return []
        return self._continued().tick(now)

    def wakeup(self) -> int:
        """Return the latest time at which ``tick`` must be called."""
        if self._general is not None:
            return self._general.wakeup()
        return min(self.deadline, self._sent_at + SILENCE_MS)

    def fail(self, error: DStashError) -> None:
        """End the call with an error."""
        self._continued().fail(error)

    def result(self) -> dict[Key, Any]:
        """Return the value found, by its key."""
        return self._found if self._found is not None else self._continued().result()

    # -- inside

    def _ask(self, targets: Peers, now: int) -> list[Send]:
        session = self.session
        self._targets, self._epoch, self._sent_at = targets, session.epoch, now
        compared = 0
        if len(targets) > 1:
            knows = session.all_speak(targets, CONTENT_DIGESTS)
            compared = _DIGEST | _CONTENT if knows else _DIGEST
        body = codec.pack_blobs((self._encoded,))
        want = _VALUES | compared
        sends = []
        for peer in targets:
            correlation = session.next_correlation()
            self._asked[correlation] = peer
            frames = session.lookup_frames(peer, correlation, self.deadline, self.index, want, body)
            sends.append(Send(peer, frames, correlation))
            want = compared
        return sends

    def _take(
        self, peer: str, correlation: int, moment: int, answer: _Answer, now: int
    ) -> list[Send]:
        self.session.heard(peer)
        self.session.learn_clock(peer, moment, self._sent_at, now)
        self._answers[peer] = answer
        if len(self._answers) < len(self._targets):
            del self._asked[correlation]
            return []
        if self._deliver():
            self._asked.clear()
            return []
        del self._answers[peer]  # the operation processes the last answer itself
        return self._continued().receive(peer, Envelope(correlation, 0, 0, _values(answer)), now)

    def _deliver(self) -> bool:
        """Set the result, if the answers agree and the value can be decoded."""
        answers = self._answers
        first = answers[self._targets[0]]
        if any(answer.digest != first.digest for answer in answers.values()):
            return False
        if first.missing == [0]:
            self._found = {}
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
        return True

    def _continued(self) -> LookupOperation:
        """Return the operation that continues this call, with the requests that have no answer."""
        if self._general is None:
            general = LookupOperation(
                self.session,
                self.deadline,
                self.index,
                [self.key],
                self.level,
                self.decode,
                [self._encoded],
            )
            general.trace, general.stores = self.trace, self._stores
            self._general = general
            if self._targets:
                chunk = ReadChunk(general, self._targets, [self.key], 0)
                chunk.epoch = self._epoch
                general.adopt(chunk, self._asked, self._sent_at)
                for peer, answer in self._answers.items():
                    chunk.answered(peer, _values(answer), self._sent_at)
        return self._general


def _values(answer: _Answer) -> Values:
    return Values(1, answer.digest, answer.missing, [], Frame(answer.values))
