"""Reading the clocks of a quorum of members before a client stamps its first write.

A new client knows one clock, that of the peer which answered first. If that one is fast, all other
replicas refuse the stamp, and the fast one keeps a version that no later write by a right clock
can beat. So the clocks of a majority are read first: of all members, or of five of them.
"""

from __future__ import annotations

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.session import Send
from dstash.errors import DStashError
from dstash.wire.messages import Ping
from dstash.wire.shapes import Message


class ClockReading(Chunk):
    """Pings to members whose clocks are not known yet; none is waited for longer than usual."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.is_over = False
        self._waiting: set[str] = set()

    def begin(self, now: int) -> list[Send]:
        """Ask all of them."""
        self._waiting = set(self.operation.session.unread_clocks())
        sends = [self.operation.ask(peer, self, Ping(), now) for peer in sorted(self._waiting)]
        self._end_if_enough()
        return sends

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Take an answer; the clock in it has been read by now."""
        return self._without(peer)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Go on without a peer that cannot be reached."""
        return self._without(peer)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        """Go on without a peer that says nothing."""
        return self._without(peer)

    def expired(self, error: DStashError) -> None:
        """Leave it to the chunks of the write to say that they were not sent."""

    def _without(self, peer: str) -> list[Send]:
        self._waiting.discard(peer)
        self._end_if_enough()
        return []

    def _end_if_enough(self) -> None:
        if not self._waiting or not self.operation.session.unread_clocks():
            self.is_over = True
            self.operation.finish(self)
