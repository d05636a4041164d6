"""A single request to one peer, of the kinds that peers send each other; backups use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.session import Send, Session
from dstash.errors import Busy, DStashError, TimedOut
from dstash.wire.shapes import Message

#: How long to wait for the answer: as long as peers wait for such answers.
_ANSWER_TIMEOUT_MS: Final = 5000


class PeerQuery(Operation):
    """Sends a request to a peer; the result is its answer.

    The request is not sent to another peer after a failure: the caller handles that.

    Args:
        session: the state that the calls of this client share.
        deadline: of the call, in milliseconds of the session's wall clock.
        peer: to send the request to.
        question: the request.
        epoch: of the view by which the peer was chosen.
    """

    def __init__(
        self, session: Session, deadline: int, peer: str, question: Message, epoch: int
    ) -> None:
        super().__init__(session, deadline)
        self.peer = peer
        self.question = question
        self.epoch = epoch
        self.answer: Message | None = None

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [_QueryChunk(self)]

    def result(self) -> Message:
        """Return the answer."""
        super().result()
        if self.answer is None:
            raise AssertionError("a peer query ended without answer or error")
        return self.answer


class _QueryChunk(Chunk):
    patience = _ANSWER_TIMEOUT_MS

    def __init__(self, operation: PeerQuery) -> None:
        self.operation = operation
        self.epoch: int = operation.epoch

    def begin(self, now: int) -> list[Send]:
        return [self.operation.ask(self.operation.peer, self, self.operation.question, now)]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        self.operation.answer = message
        self.operation.finish(self)
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        if isinstance(failure.error, Busy):
            self.operation.again_later(self, now)
            self.attempt += 1
        else:
            self.operation.fail(failure.error)
        return []

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        self.operation.fail(TimedOut(f"{peer}: no answer in {_ANSWER_TIMEOUT_MS / 1000:g} s"))
        return []

    def expired(self, error: DStashError) -> None:
        self.operation.error = self.operation.error or error
