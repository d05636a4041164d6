"""Reading the clocks of a quorum of members before a client stamps its first write.

A new client has read one clock, that of the peer that answered first. If this clock is fast, all
other replicas reject the stamp, and the fast peer keeps a version that supersedes later writes with
correct stamps. So the client first reads the clocks of a majority: of all members, or of five.
"""

from __future__ import annotations

from collections.abc import Iterator

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.session import Send
from dstash.errors import DStashError
from dstash.wire.messages import Ping
from dstash.wire.shapes import Message


class ClockReading(Chunk):
    """Pings to members whose clocks have not been read; a silent member is skipped."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.is_over = False
        self._waiting: set[str] = set()

    def begin(self, now: int) -> list[Send]:
        """Ping all of them."""
        self._waiting = set(self.operation.session.unread_clocks())
        sends = [self.operation.ask(peer, self, Ping(), now) for peer in sorted(self._waiting)]
        self._end_if_enough()
        return sends

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Process an answer; the session has already read its clock."""
        return self._without(peer)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Continue without a peer that is unreachable."""
        return self._without(peer)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        """Continue without a peer that does not answer."""
        return self._without(peer)

    def expired(self, error: DStashError) -> None:
        """Do nothing: the chunks of the write report that they were not sent."""

    def _without(self, peer: str) -> list[Send]:
        self._waiting.discard(peer)
        self._end_if_enough()
        return []

    def _end_if_enough(self) -> None:
        if not self._waiting or not self.operation.session.unread_clocks():
            self.is_over = True
            self.operation.finish(self)


class ClockReadingOperation(Operation):
    """Reads the clocks once, for several writes that are stamped after it."""

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [ClockReading(self)]
