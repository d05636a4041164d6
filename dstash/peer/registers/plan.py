"""What a proposer writes next: waiting operations, applied in order to a register.

Each operation that changes something takes a step (P4). The record has the last step, and each
operation is answered with its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

from dstash.errors import LimitError, TimedOut, UsageError
from dstash.limits import MAX_VALUE_BYTES
from dstash.peer.registers.operations import Decision, State, apply, expire, refuse, write
from dstash.peer.registers.pending import Answer, Pending, rejection
from dstash.store.record import (
    EXPIRY_BEGIN,
    HEAD_BYTES,
    build_record,
    is_tombstone,
    split_storage_key,
)
from dstash.store.register.header import MAX_HEADER_BYTES, pack_header, read_value
from dstash.types import NEVER
from dstash.version import Version, pack, stamp_at
from dstash.wire.registers import ChangeOutcome

#: The most operations in one accept.
_MAX_OPERATIONS: Final = 512

#: The highest step of a round.
MAX_STEP: Final = (1 << 16) - 1


class Ballot(NamedTuple):
    """A step of a round."""

    round: int
    step: int
    writer: bytes

    @property
    def version(self) -> Version:
        """The version of a register that this step writes."""
        return pack(stamp_at(self.round, self.step), self.writer)

    def after(self, steps: int) -> Ballot:
        """Return a later step of the round."""
        return Ballot(self.round, self.step + steps, self.writer)  # faster than _replace


class Planned(NamedTuple):
    """An operation with its answer. ``changes``: whether its effect is in the record."""

    pending: Pending
    answer: Answer
    changes: bool


class Plan(NamedTuple):
    """The result of some operations.

    ``state`` is that of the register after all of them; ``ballot`` is the last step, which is that
    of before if nothing changes. ``needs_step``: whether a step must be written although nothing
    changes.
    """

    planned: list[Planned]
    state: State
    ballot: Ballot
    needs_step: bool

    def record(self, storage_key: bytes) -> bytes:
        """Return the record of the last step."""
        _, index, key = split_storage_key(storage_key)
        return build_record(index, key, write(self.state, self.ballot.version))


def plan(waiting: Iterable[Pending], state: State, last: Ballot, expired_at: int) -> Plan:
    """Apply operations in order.

    Args:
        waiting: the operations.
        state: of the register, at the step ``last``.
        last: the step of before; -1 in a round without steps.
        expired_at: registers whose expiry is up to this time are gone; 0: none.
    """
    ballot, needs_step = last, False
    if not state.is_absent and NEVER != state.expiry <= expired_at:
        ballot = ballot.after(1)
        state = expire(state, ballot.version)
    planned = []
    for pending in islice(waiting, _MAX_OPERATIONS):
        if ballot.step >= MAX_STEP:
            break
        answer, after = _apply(pending, state, ballot.after(1).version)
        if after is not None:
            state, ballot = after, ballot.after(1)
        # A step of a lost round may still have the effect that this answer denies.
        needs_step = needs_step or pending.must_write or (pending.emitted and after is None)
        planned.append(Planned(pending, answer, after is not None))
    return Plan(planned, state, ballot, needs_step and ballot.step == last.step)


def _apply(pending: Pending, state: State, version: Version) -> tuple[Answer, State | None]:
    operation = pending.operation
    if operation is None:
        return read_answer(state), None
    if pending.emitted:
        operation = replace(operation, repeated=True)
    try:
        decision = apply(operation, state, version)
        if decision.state is not None:
            _check_size(decision.state)
    except UsageError as error:
        return _refused(error, refuse(operation, state).state)
    if decision.outcome is ChangeOutcome.FORGOTTEN and pending.emitted:
        return rejection(TimedOut("it may have been applied in a round that was lost")), None
    return _answer(decision), decision.state


def _refused(error: UsageError, state: State | None) -> tuple[Answer, State | None]:
    """Return the answer to an operation that failed, and what has to be written for it.

    A register without room for the entry of the request is not written: voters would refuse it, and
    all that is sent with it. Then the answer is not final, because a late copy may be applied.
    """
    if state is not None:
        try:
            _check_size(state)
        except LimitError:
            return rejection(
                TimedOut(f"the register has no room for the request's id: {error}")
            ), None
    return rejection(error), state


def _check_size(state: State) -> None:
    if len(state.value) + MAX_HEADER_BYTES <= MAX_VALUE_BYTES:
        return
    size = len(state.value) + len(pack_header(state.header))
    if size > MAX_VALUE_BYTES:
        raise LimitError(
            f"a register has at most {MAX_VALUE_BYTES} bytes with its header, not {size}"
        )


def _answer(decision: Decision) -> Answer:
    if decision.is_answer_lost:
        return Answer(ChangeOutcome.ANSWER_LOST, decision.version)
    return Answer(decision.outcome, decision.version, decision.answer or None)


def read_present(record: bytes, expired_at: int) -> Answer | None:
    """Return the answer of a read, in fewer steps than ``plan``; None if that has to decide.

    Args:
        record: a sound register.
        expired_at: registers whose expiry is up to this time are gone; 0: none.
    """
    expiry = int.from_bytes(record[EXPIRY_BEGIN:HEAD_BYTES], "big")
    if is_tombstone(record) or NEVER != expiry <= expired_at:
        return None
    changed, value = read_value(record)
    return Answer(ChangeOutcome.FOUND, changed, value, expiry)


def read_answer(state: State) -> Answer:
    """Return the answer of a read."""
    if state.is_absent:
        return Answer(ChangeOutcome.ABSENT)
    return Answer(ChangeOutcome.FOUND, state.version, state.value, state.expiry)
