"""Changes of registers: each is sent to the home of its keys, and applied once.

All copies of a request have the same id, so a home knows which it has applied (rules D6 and D7 of
``docs/atomic.md``). A request without an answer is sent again: to the same home if that was busy,
else to the next replica.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from dstash.client.operations.base import Chunk
from dstash.client.operations.batching import Item, chunked, interleave, largest_of, split_by_size
from dstash.client.operations.reads import Decode
from dstash.client.operations.registers.answers import Answer
from dstash.client.operations.registers.chunks import (
    APPLIED,
    ChangeChunk,
    ChangingOperation,
    Copy,
)
from dstash.client.operations.registers.pacing import MAX_KEYS, WINDOW
from dstash.client.operations.registers.request_ids import Caller, RequestIds
from dstash.client.operations.registers.wanted import RequestId, Wanted
from dstash.client.refusals import error_for
from dstash.client.results import ChangeResult, answer_lost_error
from dstash.client.routing import group
from dstash.client.session import Send, Session
from dstash.errors import DStashError
from dstash.types import Outcome
from dstash.version import Stamp
from dstash.wire import codec
from dstash.wire.keys import Key
from dstash.wire.links import NOT_CONNECTED
from dstash.wire.registers import Change, ChangeKind, ChangeOutcome

BYTES_PER_CHUNK: Final = 1024 * 1024
BYTES_PER_BATCH: Final = 32 * 1024 * 1024

_DELETES: Final = frozenset({ChangeKind.DELETE, ChangeKind.POP})


class ChangeOperation(ChangingOperation):
    """Changes registers, each by itself; the result is a ``ChangeResult``.

    Args:
        session: the state that the calls of this client share.
        deadline: of the call, in milliseconds of the session's wall clock.
        index: of the registers.
        items: distinct keys, with the values to store.
        wanted: what to do.
        ids: the source of request ids.
        decode: decodes values.
    """

    window = WINDOW

    def __init__(
        self,
        session: Session,
        deadline: int,
        index: str,
        items: Sequence[Item],
        wanted: Wanted,
        ids: RequestIds,
        decode: Decode,
    ) -> None:
        super().__init__(session, deadline)
        self.index = index
        self.wanted = wanted
        self.outcome = ChangeResult()
        self.uncertain = set()
        self._items = items
        self._largest = largest_of(items)
        self._ids = ids
        self._decode = decode
        self._callers: list[Caller] = []

    def _chunks(self) -> Iterator[list[Chunk]]:
        for part in split_by_size(
            self._items, self.session.batch_keys, BYTES_PER_BATCH, self._largest
        ):
            yield from chunked(self.cut(part, self.new_request()))

    def new_request(self, past: Stamp = 0) -> RequestId:
        """Return a new id, with a number above ``past``.

        If that is in the future, other requests of the caller keep the numbers of its clock.
        """
        caller = self._ids.take()
        self._callers.append(caller)
        if self.session.is_from_the_future(past):
            return RequestId(caller, past + 1, self.session.epoch, is_ahead=True)
        caller.move_past(past)
        return RequestId(caller, caller.next_number(), self.session.epoch)

    def message(self, items: Sequence[Item], request: RequestId, *, repeated: bool) -> Change:
        """Return the request for items."""
        return self.wanted.message(self.index, items, request, repeated=repeated)

    def cut(
        self, items: Sequence[Item], request: RequestId, attempt: int = 0, *, repeated: bool = False
    ) -> list[Chunk]:
        """Return chunks for items, routed by the current view; all have the same request id."""
        table = self.session.homes()
        encoded = [encoded for _, encoded, _ in items]
        parts = interleave(
            [
                (homes, part)
                for part in split_by_size(members, MAX_KEYS, BYTES_PER_CHUNK, self._largest)
            ]
            for homes, members in group(encoded, items, table).items()
        )
        return [
            ChangeChunk(self, homes, table.epoch, part, request, attempt, repeated=repeated)
            for homes, part in parts
        ]

    def unsent(self, send: Send, now: int, reason: str = NOT_CONNECTED) -> list[Send]:
        """Process that a request could not be sent: it is no copy that a home may apply."""
        pending = self._pending.get(send.correlation)
        if pending is not None and isinstance(pending.chunk, Copy):
            pending.chunk.is_sent = False
        return super().unsent(send, now, reason)

    def settle(self, item: Item, answer: Answer) -> None:
        """Record the outcome of a change that was applied, or has certainly changed nothing."""
        key, outcome, wanted = item[0], self.outcome, self.wanted
        if answer.outcome in APPLIED:
            outcome.stored += 1
            outcome.deleted += wanted.kind in _DELETES
            outcome.versions[key] = answer.version
            if answer.outcome is ChangeOutcome.ANSWER_LOST:
                self.give_up([key], Outcome.STORED, answer_lost_error(key, answer.version))
            elif answer.value is not None:
                frame = codec.join_payloads([answer.value])
                [outcome.values[key]] = self._decode(frame, [key], {})
        elif wanted.is_refused(answer):
            self.give_up([key], Outcome.FAILED, wanted.conflict(self.index, key, answer))
        else:
            outcome.unchanged[key] = answer.version
            if wanted.kind in _DELETES:
                outcome.missing.append(key)
                outcome.stored += 1  # it is certain that the key does not exist

    def settle_applied(self, items: Sequence[Item], answers: Sequence[Answer]) -> None:
        """Record changes that were all applied."""
        outcome, keys = self.outcome, [key for key, _, _ in items]
        outcome.stored += len(keys)
        outcome.deleted += len(keys) if self.wanted.kind in _DELETES else 0
        outcome.versions.update(zip(keys, [answer.version for answer in answers], strict=True))
        for key, answer in zip(keys, answers, strict=True):
            if answer.value is not None:
                frame = codec.join_payloads([answer.value])
                [outcome.values[key]] = self._decode(frame, [key], {})

    def give_up(self, keys: Sequence[Key], outcome: Outcome, error: DStashError) -> None:
        """Record keys as failed or unknown."""
        self.outcome.give_up(keys, outcome, error)

    def fail(self, error: DStashError) -> None:
        """End the whole call with an error, which is ``TimedOut`` if a key may be changed."""
        chunks = [chunk for chunk in self._open if isinstance(chunk, ChangeChunk)]
        if self.outcome.versions or any(chunk.may_be_applied for chunk in chunks):
            error = error_for(Outcome.UNKNOWN, error)
        super().fail(error)

    def result(self) -> ChangeResult:
        """Return the outcomes."""
        super().result()
        is_decided = Outcome.UNKNOWN not in self.outcome.outcomes.values()
        while self._callers and is_decided:
            self._ids.give_back(self._callers.pop())
        return self.outcome
