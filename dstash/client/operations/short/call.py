"""A call for one key in few steps, which a general operation continues when it is not plain.

For most calls of a cache the peers answer at once, and all is well. For these the general operation
takes more time than all messages. A ``ShortCall`` sends the same requests. When anything else
happens (no answer in time, a lost connection, an error), it hands its requests and answers over to
an operation, which continues as if it had sent them itself.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from dstash.client.operations.base import VIEWS, Call, Operation
from dstash.client.session import SILENCE_MS, Send, Session
from dstash.client.sightings import Sighting
from dstash.errors import DStashError, ProtocolError
from dstash.wire import codec
from dstash.wire.envelope import Envelope
from dstash.wire.links import NOT_CONNECTED


def plain_header(parts: list[bytes], frames: int, kind: int, fields: int) -> list[Any] | None:
    """Return the header of a message that has the frames, kind and fields of a plain answer.

    None: the message is something else, which the general operation decodes.
    """
    if len(parts) != frames:
        return None
    try:
        header = codec.unpack_header(parts[0])
    except ProtocolError:
        return None
    return header if len(header) == fields and header[1] == kind else None


class ShortCall(Call):
    """A call for one key.

    Args:
        session: the state that the calls of this client share.
        deadline: of the call, in milliseconds of the session's wall clock.
        index: of the key.
    """

    #: How long (milliseconds) to wait for the answers before the operation continues.
    patience: int = SILENCE_MS

    def __init__(self, session: Session, deadline: int, index: str) -> None:
        self.session = session
        self.deadline = deadline
        self.index = index
        self.trace = ""
        self._stores: dict[str, Sighting] = {}
        #: The operation that continues this call; None as long as the call is short.
        self._general: Operation | None = None
        #: Whether the call has ended without it.
        self._has_ended = False
        self._sent_at = 0
        #: Peer by the correlation id of its request.
        self._asked: dict[int, str] = {}
        #: When each peer last answered, if that is shared with other calls.
        self._last_heard: dict[str, int] | None = None

    # -- for subclasses

    @abstractmethod
    def _hand_over(self, stores: dict[str, Sighting]) -> Operation:
        """Return the operation that continues this call, with its requests and answers."""

    # -- for transports

    @abstractmethod
    def receive_frames(self, peer: str, parts: list[bytes], now: int) -> list[Send] | None:
        """Process the frames of a message if they are a plain answer; else return None."""

    @property
    def is_running_short(self) -> bool:
        """Whether the call has not ended, and no operation has taken it over."""
        return self._general is None and not self._has_ended

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
        return self._has_ended or (self._general is not None and self._general.done)

    @property
    def hungry(self) -> bool:
        """Whether ``more`` has something to send now."""
        if self._general is not None:
            return self._general.hungry and not self._has_ended
        return not self._asked and not self._has_ended

    def share(self, last_heard: dict[str, int]) -> None:
        """Share with all calls on the same connections when each peer last answered."""
        self._last_heard = last_heard
        if self._general is not None:
            self._general.share(last_heard)

    def lost(self, peer: str, now: int, reason: str = "connection lost") -> list[Send]:
        """Process that the connection to a peer broke."""
        return self._continued().lost(peer, now, reason)

    def unsent(self, send: Send, now: int, reason: str = NOT_CONNECTED) -> list[Send]:
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
        return min(self.deadline, self._sent_at + self.patience)

    def fail(self, error: DStashError) -> None:
        """End the call with an error."""
        self._continued().fail(error)

    # -- inside

    def _continued(self) -> Operation:
        """Return the operation that continues this call."""
        if self._general is None:
            self._general = self._hand_over(self._stores)
            if self._last_heard is not None:
                self._general.share(self._last_heard)
        return self._general

    def _hear(self, peer: str, now: int) -> None:
        """Record that a peer has answered."""
        self.session.heard(peer)
        if self._last_heard is not None:
            self._last_heard[peer] = now

    def _is_about_others(self, envelope: Envelope) -> bool:
        """Whether a message is neither an answer to this call nor a view."""
        return (
            self._general is None
            and envelope.correlation not in self._asked
            and not isinstance(envelope.message, VIEWS)
        )
