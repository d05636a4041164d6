"""Operations that wait for their decision, and the requests that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from dstash.errors import Busy, DStashError, TimedOut, Unavailable
from dstash.peer.registers.operations import Operation
from dstash.types import NEVER
from dstash.version import Stamp
from dstash.wire import codec
from dstash.wire.registers import Changed, ChangeOutcome, pack_numbers
from dstash.wire.shapes import Frame

#: The most bytes of values in one message, unless a single value is longer.
_MAX_BYTES: Final = 4 * 1024 * 1024


class Answer(NamedTuple):
    """The answer for one key. ``error`` is that of a rejected operation."""

    outcome: ChangeOutcome
    version: Stamp = 0
    value: bytes | None = None
    expiry: int = NEVER
    error: DStashError | None = None


def rejection(error: DStashError) -> Answer:
    """Return the answer to an operation that failed."""
    return Answer(ChangeOutcome.REJECTED, error=error)


def _no_reason() -> DStashError | None:
    return None


@dataclass(eq=False, slots=True)
class Pending:
    """An operation on one register that waits for its decision.

    Attributes:
        operation: None reads.
        decide: takes the answer; later answers are ignored.
        emitted: whether it was part of an accept that was sent: its outcome is unknown until a
            step is chosen.
        must_write: whether a step must be written even if nothing changes.
        is_decided: whether it has its answer.
        why: returns why no quorum could be had so far.
    """

    operation: Operation | None
    decide: Callable[[Answer], None]
    emitted: bool = False
    must_write: bool = False
    is_decided: bool = False
    why: Callable[[], DStashError | None] = _no_reason

    @property
    def may_need_no_write(self) -> bool:
        """Whether it may be answered without a write if the replicas agree."""
        operation = self.operation
        if operation is None:
            return not self.must_write
        return operation.is_conditional and not (self.emitted or operation.repeated)

    def answer(self, answer: Answer) -> None:
        """Give the answer, unless it has one."""
        if not self.is_decided:
            self.is_decided = True
            self.decide(answer)

    def expire(self) -> None:
        """Answer at the deadline, with the reason why no quorum could be had."""
        reason = self.why()
        if self.emitted:
            self.answer(rejection(TimedOut(_text("no quorum has acked it in time", reason))))
        elif reason is not None and not reason.retryable:
            self.answer(rejection(reason))
        else:
            self.answer(rejection(Unavailable(_text("no quorum in time", reason))))


def _text(text: str, reason: DStashError | None) -> str:
    return text if reason is None else f"{text}: {reason}"


@dataclass(eq=False, slots=True)
class Batch:
    """A request for some registers; ``done`` is called once, when each has its answer."""

    done: Callable[[Changed], None]
    is_read: bool
    answers: list[Answer | None]
    pending: list[Pending] = field(default_factory=list)
    _missing: int = 0

    @classmethod
    def of(cls, count: int, done: Callable[[Changed], None], *, is_read: bool) -> Batch:
        """Return a request for ``count`` registers."""
        return cls(done, is_read, [None] * count, _missing=count)

    @property
    def is_decided(self) -> bool:
        """Whether every register has its answer."""
        return not self._missing

    def settle(self, places: Iterable[int], answers: Iterable[Answer]) -> None:
        """Take the answers for the registers at places without an answer."""
        count = 0
        for place, answer in zip(places, answers, strict=False):
            self.answers[place] = answer
            count += 1
        self._decided(count)

    def add(self, place: int, operation: Operation | None, *, emitted: bool = False) -> Pending:
        """Return the operation at a place as one that waits for its decision by itself."""
        pending = Pending(operation, self._deciding(place), emitted)
        self.pending.append(pending)
        return pending

    def _deciding(self, place: int) -> Callable[[Answer], None]:
        def decide(answer: Answer) -> None:
            self.answers[place] = answer
            self._decided(1)

        return decide

    def _decided(self, count: int) -> None:
        self._missing -= count
        if count and not self._missing:
            self.done(_changed(self.answers, is_read=self.is_read))


def _changed(answers: list[Answer | None], *, is_read: bool) -> Changed:
    given = _fitting([answer for answer in answers if answer is not None])
    rejected = [
        [place, answer.error.code, str(answer.error)]
        for place, answer in enumerate(given)
        if answer.error is not None
    ]
    return Changed(
        bytes(answer.outcome for answer in given),
        pack_numbers([answer.version for answer in given]),
        pack_numbers([answer.expiry for answer in given]) if is_read else b"",
        rejected,
        Frame(codec.pack_blobs([answer.value for answer in given])),
    )


def _fitting(answers: list[Answer]) -> list[Answer]:
    """Return answers that fit into one message: the values that do not fit are left out."""
    weight, fitting = 0, []
    for answer in answers:
        size = len(answer.value or b"")
        if weight and weight + size > _MAX_BYTES:
            fitting.append(_without_value(answer))
        else:
            weight += size
            fitting.append(answer)
    return fitting


def _without_value(answer: Answer) -> Answer:
    """Return the answer to repeat a read, or that the answer of a change is lost."""
    if answer.outcome is ChangeOutcome.FOUND:
        return rejection(Busy("the values of the request do not fit into one answer"))
    return Answer(ChangeOutcome.ANSWER_LOST, answer.version)
