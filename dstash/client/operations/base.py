"""The state machine of a client call, without I/O: requests, answers, chunks.

An ``Operation`` is one call. It is cut into chunks; a chunk is one request to each of a set of
peers. The transports (blocking, asyncio) send and receive the messages and pass the time in::

    while not operation.done:
        send(operation.more(now))            # as long as operation.hungry
        send(operation.receive(peer, envelope, now))
        send(operation.lost(peer, now))      # when a connection breaks
        send(operation.tick(now))            # no later than operation.wakeup()
    operation.result()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from dstash.client.session import SILENCE_MS, Send, Session
from dstash.client.sightings import Sighting
from dstash.errors import (
    Busy,
    DeadlinePassed,
    DStashError,
    Misrouted,
    NotReady,
    ProtocolError,
    Refused,
    StaleEpoch,
    StoreFailed,
    TimedOut,
    Unauthorised,
    Unavailable,
    UsageError,
    VersionMismatch,
)
from dstash.wire.diagnosis import LastingReason
from dstash.wire.envelope import Envelope
from dstash.wire.links import NOT_CONNECTED
from dstash.wire.messages import Error, TopologyReply, Welcome
from dstash.wire.shapes import Message
from dstash.wire.sockets import KEY_UNKNOWN

#: Pending requests of one call: enough to keep every peer busy, few enough to bound memory.
WINDOW: Final = 48

#: Answers that contain a view.
VIEWS: Final = (Welcome, TopologyReply)

#: Pauses between attempts.
BACKOFF_MS: Final = (10, 30, 80, 200, 400)

#: The longest pause that a busy peer can request.
MAX_RETRY_AFTER_MS: Final = 5000


class Failure(NamedTuple):
    """The error of a request. ``definite``: the peer certainly did nothing."""

    error: DStashError
    definite: bool


class Chunk(ABC):
    """A part of a call: one request to each of a few peers, and their answers."""

    attempt: int = 0
    #: The epoch of the view that it was routed by; None if any epoch will do.
    epoch: int | None = None
    #: How long (milliseconds) to wait for an answer before ``on_timeout`` is called.
    patience: int = SILENCE_MS
    #: The pause (milliseconds) that a busy peer requested.
    retry_after: int = 0

    @abstractmethod
    def begin(self, now: int) -> list[Send]:
        """Send the first requests."""

    @abstractmethod
    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Process an answer."""

    @abstractmethod
    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Process the failure of a request."""

    @abstractmethod
    def on_timeout(self, peer: str, now: int) -> list[Send]:
        """Process that a peer has not answered in time."""

    @abstractmethod
    def expired(self, error: DStashError) -> None:
        """Give up, because the deadline of the call has passed."""


class _Pending(NamedTuple):
    peer: str
    chunk: Chunk
    sent: int
    #: When the current wait for the answer began.
    since: int


class Call(ABC):
    """One call of a client, as transports drive it; see the start of this module."""

    session: Session
    #: In milliseconds of the session's wall clock.
    deadline: int
    #: Trace context of the call (see ``wire/traceparent.py``); empty for none.
    trace: str
    #: The store of each peer, as reported on the current connection.
    stores: dict[str, Sighting]

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether the call has ended."""

    @property
    @abstractmethod
    def hungry(self) -> bool:
        """Whether ``more`` has something to send now."""

    @abstractmethod
    def share(self, last_heard: dict[str, int]) -> None:
        """Share with all calls on the same connections when each peer last answered."""

    @abstractmethod
    def more(self, now: int) -> list[Send]:
        """Start the next requests."""

    @abstractmethod
    def receive(self, peer: str, envelope: Envelope, now: int) -> list[Send]:
        """Process a message from a peer."""

    @abstractmethod
    def lost(self, peer: str, now: int, reason: str = "connection lost") -> list[Send]:
        """Process that the connection to a peer broke: the outcome of its requests is unknown."""

    @abstractmethod
    def unsent(self, send: Send, now: int, reason: str = NOT_CONNECTED) -> list[Send]:
        """Process that a request could not be sent: the peer certainly did nothing."""

    @abstractmethod
    def tick(self, now: int) -> list[Send]:
        """Expire the call, start delayed requests and time out others, if due."""

    @abstractmethod
    def wakeup(self) -> int:
        """Return the latest time at which ``tick`` must be called."""

    @abstractmethod
    def fail(self, error: DStashError) -> None:
        """End the whole call with an error."""

    @abstractmethod
    def result(self) -> Any:
        """Return the result of the call, or raise its error."""


class Operation(Call):
    """A call that is cut into chunks.

    Args:
        session: the state that the calls of this client share.
        deadline: of the call, in milliseconds of the session's wall clock.
    """

    trace: str = ""
    #: How many requests may be pending before no further chunk is started.
    window: int = WINDOW

    def __init__(self, session: Session, deadline: int) -> None:
        self.session = session
        self.deadline = deadline
        self.error: DStashError | None = None
        self._source = self._chunks()
        self._exhausted = False
        self._pending: dict[int, _Pending] = {}
        self._open: set[Chunk] = set()
        self._last_heard: dict[str, int] = {}
        self.stores = {}
        self._later: list[tuple[int, Chunk]] = []
        self._reasons: dict[str, str] = {}

    # -- for subclasses

    @abstractmethod
    def _chunks(self) -> Iterator[list[Chunk]]:
        """Yield the chunks of the call, a few at a time."""

    def ask(self, peer: str, chunk: Chunk, message: Message, now: int) -> Send:
        """Send a request on behalf of a chunk."""
        correlation = self.session.next_correlation()
        self._pending[correlation] = _Pending(peer, chunk, now, now)
        return self.session.request(
            peer, correlation, self.deadline, message, chunk.epoch, self.trace
        )

    def start(self, chunks: list[Chunk], now: int) -> list[Send]:
        """Start chunks."""
        sends = []
        self._open.update(chunks)
        for chunk in chunks:
            sends += chunk.begin(now)
        return sends

    def adopt(self, chunk: Chunk, requests: Mapping[int, str], sent: int) -> None:
        """Continue a call that has sent its requests already.

        Args:
            chunk: the only chunk of the call.
            requests: peer by correlation id, of the requests without an answer so far.
            sent: when they were sent, in milliseconds.
        """
        self._source = iter(())
        self._exhausted = True
        self._open.add(chunk)
        for correlation, peer in requests.items():
            self._pending[correlation] = _Pending(peer, chunk, sent, sent)

    def finish(self, chunk: Chunk) -> list[tuple[int, str]]:
        """Finish a chunk; return (correlation id, peer) of its unanswered requests."""
        self._open.discard(chunk)
        stale = [
            (number, pending.peer)
            for number, pending in self._pending.items()
            if pending.chunk is chunk
        ]
        for number, _ in stale:
            del self._pending[number]
        return stale

    def replace(self, chunk: Chunk, successors: list[Chunk], now: int) -> list[Send]:
        """Replace a chunk by other chunks, and start them."""
        self.finish(chunk)
        return self.start(successors, now)

    def replace_later(self, chunk: Chunk, successors: list[Chunk], now: int) -> list[Send]:
        """Replace a chunk by other chunks, and start them after a pause; see ``again_later``."""
        self.finish(chunk)
        for successor in successors:
            successor.retry_after = chunk.retry_after
        return self.start_later(successors, now)

    def start_later(self, chunks: list[Chunk], now: int) -> list[Send]:
        """Start chunks after a pause; see ``again_later``."""
        self._open.update(chunks)
        for chunk in chunks:
            self.again_later(chunk, now)
        return []

    def again_later(self, chunk: Chunk, now: int) -> None:
        """Start a chunk (again) after a pause that grows with its attempts.

        The pause is at least as long as a busy peer requested. Jitter prevents that all clients
        come back at the same time.
        """
        pause = max(BACKOFF_MS[min(chunk.attempt, len(BACKOFF_MS) - 1)], chunk.retry_after)
        chunk.retry_after = 0
        self._later.append((now + self.session.jittered(pause), chunk))

    def fail(self, error: DStashError) -> None:
        """End the whole call with an error."""
        self.error = self.error or error
        self._exhausted = True
        self._pending.clear()
        self._open.clear()
        self._later.clear()

    # -- for transports

    def share(self, last_heard: dict[str, int]) -> None:
        """Share with all calls on the same connections when each peer last answered."""
        self._last_heard = last_heard

    @property
    def done(self) -> bool:
        """Whether the call has ended."""
        return self._exhausted and not self._open

    @property
    def hungry(self) -> bool:
        """Whether ``more`` has something to send now."""
        return not self._exhausted and len(self._pending) < self.window

    def more(self, now: int) -> list[Send]:
        """Start the next chunks."""
        overdue = self.session.outstanding.overdue(now) if self.session.outstanding else ()
        hints = self.session.hints(overdue, now) if overdue else []
        chunks = next(self._source, None)
        if chunks is None:
            self._exhausted = True
            return hints
        return hints + self.start(chunks, now)

    def receive(self, peer: str, envelope: Envelope, now: int) -> list[Send]:
        """Process a message from a peer."""
        self._last_heard[peer] = now
        self.session.heard(peer)
        try:
            return self._take(peer, envelope, now)
        except DStashError as error:
            self.fail(error)
            return []

    def lost(self, peer: str, now: int, reason: str = "connection lost") -> list[Send]:
        """Process that the connection to a peer broke: the outcome of its requests is unknown."""
        self.session.suspect(peer, now)
        gone = [number for number, pending in self._pending.items() if pending.peer == peer]
        sends = []
        for number in gone:
            pending = self._pending.pop(number, None)
            if pending is not None:
                failure = Failure(_connection_error(peer, reason), definite=False)
                sends += self._failed(pending, failure, now)
        return sends + self.session.hints(self.session.outstanding.lost(peer), now)

    def unsent(self, send: Send, now: int, reason: str = NOT_CONNECTED) -> list[Send]:
        """Process that a request could not be sent: the peer certainly did nothing."""
        self.session.suspect(send.peer, now)
        pending = self._pending.pop(send.correlation, None)
        if pending is None:
            return []
        failure = Failure(_connection_error(send.peer, reason), definite=True)
        return self._failed(pending, failure, now)

    def tick(self, now: int) -> list[Send]:
        """Expire the call, start delayed chunks and time out requests, if due."""
        if now >= self.deadline:
            self._expire(now)
            return []
        sends = self.session.probes(now)
        if self._later and not self._pending:
            sends += self.session.view_request(now)
        sends += self._begin_due(now)
        for number, pending in list(self._pending.items()):
            if number in self._pending and now >= self._patience_ends(pending):
                self._pending[number] = pending._replace(since=now)
                self.session.suspect(pending.peer, now)
                self._reasons[pending.peer] = "no answer"
                sends += pending.chunk.on_timeout(pending.peer, now)
        return sends

    def wakeup(self) -> int:
        """Return the latest time at which ``tick`` must be called."""
        times = [self.deadline, *(due for due, _ in self._later)]
        times += [self._patience_ends(pending) for pending in self._pending.values()]
        return min(times)

    def result(self) -> Any:
        """Return the result of the call, or raise its error."""
        if self.error is not None:
            raise self.error
        return None

    # -- inside

    def _begin_due(self, now: int) -> list[Send]:
        due = [chunk for when, chunk in self._later if when <= now]
        self._later = [entry for entry in self._later if entry[0] > now]
        return [send for chunk in due if chunk in self._open for send in chunk.begin(now)]

    def _patience_ends(self, pending: _Pending) -> int:
        quiet_since = max(pending.since, self._last_heard.get(pending.peer, 0))
        return quiet_since + (pending.chunk.patience << min(pending.chunk.attempt, 6))

    def _take(self, peer: str, envelope: Envelope, now: int) -> list[Send]:
        message = envelope.message
        if isinstance(message, VIEWS):
            self.session.install(message.topology, message.alive)
        if isinstance(message, Welcome):
            self.session.learn_protocol(peer, message.lowest, message.highest)
            self.session.learn_limits(message.peer, message.limits)
            self.session.learn_place(message.peer, message.place)
            sighting = self.session.sightings.learn(message.store)
            if sighting is not None:
                self.stores[peer] = sighting
        pending = self._pending.pop(envelope.correlation, None)
        if pending is None:
            return take_late_answer(self.session, peer, envelope, now)
        # Only for answers to this call: an answer that has been waiting to be read since the last
        # call would make the clock of the peer look slow.
        name = message.peer if isinstance(message, Welcome) else peer
        self.session.learn_clock(name, envelope.moment, pending.sent, now)
        if isinstance(message, Error):
            return self._refused(pending, message.error(), now)
        return pending.chunk.answered(peer, message, now)

    def _refused(self, pending: _Pending, error: DStashError, now: int) -> list[Send]:
        if isinstance(error, StaleEpoch) and isinstance(error.details.get("topology"), bytes):
            self.session.install(error.details["topology"], [])
        elif isinstance(error, Busy):
            pending.chunk.retry_after = max(pending.chunk.retry_after, _retry_after(error))
        elif isinstance(error, VersionMismatch) and self._shares_protocol(pending.peer, error):
            error = NotReady(str(error))  # the next attempt uses a version that it supports
        elif not isinstance(error, Misrouted | DeadlinePassed):
            self.session.suspect(pending.peer, now)
        return self._failed(pending, Failure(error, definite=_is_definite(error)), now)

    def _shares_protocol(self, peer: str, error: VersionMismatch) -> bool:
        details = error.details
        return self.session.learn_protocol(peer, details.get("lowest"), details.get("highest"))

    def _failed(self, pending: _Pending, failure: Failure, now: int) -> list[Send]:
        self._reasons[pending.peer] = str(failure.error).removeprefix(f"{pending.peer}: ")
        return pending.chunk.failed(pending.peer, failure, now)

    def _expire(self, now: int) -> None:
        for pending in self._pending.values():
            # Its clock may have been set, so that it dropped the request as late: a ping reads it.
            self.session.suspect(pending.peer, now)
            self._reasons.setdefault(pending.peer, "no answer")
        reasons = "; ".join(f"{peer}: {why}" for peer, why in sorted(self._reasons.items()))
        waiting = bool(self._pending) or not self._exhausted
        kind = TimedOut if waiting else Unavailable
        what = "no answer in time" if waiting else "not enough replicas answered"
        error = kind(f"{what}{f' ({reasons})' if reasons else ''}")
        for chunk in list(self._open):
            chunk.expired(error)
        self._expire_unsent(error)
        self._exhausted = True
        self._pending.clear()
        self._open.clear()

    def _expire_unsent(self, error: DStashError) -> None:
        """Expire the chunks that were never sent, so that no part of the call goes missing."""
        for chunks in self._source:
            for chunk in chunks:
                chunk.expired(error)
            if self.error is not None:
                return  # the call fails as a whole


def take_late_answer(session: Session, peer: str, envelope: Envelope, now: int) -> list[Send]:
    """Process an answer that no running call waits for: to a ping, or to a write that returned."""
    sent = session.probe_sent(peer, envelope.correlation)
    if sent is not None:
        session.learn_clock(peer, envelope.moment, sent, now)
    return session.hints(session.outstanding.answered(envelope.correlation, envelope.message), now)


def _connection_error(peer: str, reason: str) -> DStashError:
    kind = Unauthorised if reason == KEY_UNKNOWN else Unavailable
    return kind(f"{peer}: {reason}", is_lasting=isinstance(reason, LastingReason))


def _retry_after(error: Busy) -> int:
    wanted = error.details.get("retry_after_ms")
    return min(wanted, MAX_RETRY_AFTER_MS) if type(wanted) is int and wanted > 0 else 0


def _is_definite(error: DStashError) -> bool:
    """Whether a peer that returns this error certainly stored nothing.

    After a failed sync, or an error of a later version, the state of the disk is unknown.
    """
    if isinstance(error, StoreFailed) or type(error) is Refused:
        return False
    return isinstance(error, Refused | ProtocolError | UsageError | Unavailable)
