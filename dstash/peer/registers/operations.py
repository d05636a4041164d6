"""Operations on a register: what each does to its value, as pure functions.

A proposer applies operations to the register that it read from a quorum, and proposes the result
as the next step. Requests have ids, so that a request that is repeated after an unknown outcome is
applied once (rules D6 to D9 of ``docs/atomic.md``).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final, NamedTuple

import msgpack

from dstash.errors import UsageError
from dstash.store.record import Record, is_tombstone, open_record
from dstash.store.register.header import (
    MAX_ANSWER_BYTES,
    MAX_ENTRIES,
    Applied,
    Entry,
    Header,
    pack_header,
    split,
)
from dstash.types import NEVER, RecordFlag
from dstash.version import Stamp, Version, stamp_at, stamp_milliseconds, write_stamp
from dstash.wire.registers import (
    ANY,
    MAX_INTEGER,
    MIN_INTEGER,
    MISSING,
    ChangeKind,
    ChangeOutcome,
)

#: How much older (milliseconds) than the newest number an entry may be; less with many entries.
_KEEP_MS: Final = 60_000
_KEEP_MANY_MS: Final = 5_000
_MANY: Final = 256
#: How far a number of the future may exceed the highest one that the register remembers.
_AHEAD: Final = stamp_at(1)

_number_of: Final = attrgetter("number")


@dataclass(frozen=True, slots=True)
class Operation:
    """A request for one key.

    Attributes:
        kind: what it does.
        caller: 8 bytes, the caller of the request.
        number: its number among the requests of that caller; a stamp.
        repeated: whether the client has sent it before.
        expected: the version that the register must have; ``ANY``, or ``MISSING`` for absent.
        value: msgpack, for ``PUT`` and ``SWAP``.
        amount: for ``INCREMENT``, with ``initial`` if the register is absent; ``at_least`` and
            ``at_most`` bound the sum: outside them nothing is changed.
        expiry: milliseconds since 1970, or ``NEVER``; None keeps the present one.
        fence: a fencing token; the operation is refused if a higher one was used before.
        lost_until: a copy with a number up to this may have been applied without a trace (T7).
        is_ahead: whether the number may be ahead of the clocks, just above that of the register.
    """

    kind: ChangeKind
    caller: bytes
    number: Stamp
    repeated: bool = False
    expected: Stamp = ANY
    value: bytes = b""
    amount: int = 0
    initial: int = 0
    at_least: int = MIN_INTEGER
    at_most: int = MAX_INTEGER
    expiry: int | None = None
    fence: Stamp = 0
    lost_until: Stamp = 0
    is_ahead: bool = False

    @property
    def is_conditional(self) -> bool:
        """Whether it may change nothing, because of its terms or of an absent register."""
        return (
            self.expected != ANY
            or bool(self.fence)
            or self.kind in (ChangeKind.POP, ChangeKind.DELETE, ChangeKind.TOUCH)
            or (self.at_least, self.at_most) != (MIN_INTEGER, MAX_INTEGER)
        )


class State(NamedTuple):
    """A register as a proposer reads it. ``is_absent``: it has no value."""

    header: Header
    value: bytes
    expiry: int
    is_absent: bool

    @property
    def version(self) -> Stamp:
        """The version that users see; 0 if it is absent."""
        return MISSING if self.is_absent else self.header.changed


class Decision(NamedTuple):
    """The result of an operation.

    Attributes:
        outcome: whether it was applied.
        version: of the register: of this change if it was applied, else the present one. Of a
            request that is forgotten, the number that another one must exceed.
        answer: msgpack; empty for none. A repeated request lost it if it was over 32 bytes.
        state: what has to be written; None if nothing has.
        is_answer_lost: whether the request was applied before with an answer that was not kept.
    """

    outcome: ChangeOutcome
    version: Stamp
    answer: bytes = b""
    state: State | None = None
    is_answer_lost: bool = False


def read(record: bytes | None, horizon: Stamp) -> State:
    """Return the state of a register.

    Args:
        record: a sound register, or None if the voters hold none.
        horizon: the highest that the voters of the round have reported.
    """
    if record is None:
        return State(Header(0, forgotten=horizon), b"", NEVER, is_absent=True)
    fields = open_record(record)
    header, value = split(fields.payload)
    return State(header, value, fields.expiry, is_tombstone(record))


def expire(state: State, version: Version) -> State:
    """Return the state after the expiry of a register: a tombstone, written by a step (D4)."""
    header = replace(state.header, changed=write_stamp(version))
    return State(header, b"", NEVER, is_absent=True)


def write(state: State, version: Version) -> Record:
    """Return the record of a state, for a step."""
    flags = RecordFlag.REGISTER | (RecordFlag.TOMBSTONE if state.is_absent else 0)
    return Record(version, int(flags), state.expiry, pack_header(state.header) + state.value)


def apply(operation: Operation, state: State, version: Version) -> Decision:
    """Apply an operation.

    Args:
        operation: the operation.
        state: of the register, as the previous step left it.
        version: of the step that would write the result.

    Raises:
        UsageError: it cannot be applied to this value; nothing is changed.
    """
    before = _known(operation, state)
    if before is not None:
        return before
    if operation.number <= max(state.header.forgotten, operation.lost_until):
        return _forgotten(state)
    if operation.is_ahead and operation.number > _newest(state) + _AHEAD:
        return _forgotten(state)  # else the register would remember any number of the future
    if operation.expected not in (ANY, state.version) or operation.fence < _fence(operation, state):
        return _not_applied(operation, state, ChangeOutcome.CONFLICT)
    changed = _change(operation, state)
    if changed is None:
        return _not_applied(operation, state, ChangeOutcome.UNCHANGED)
    after, answer = changed
    stamp = write_stamp(version)
    is_touch = operation.kind is ChangeKind.TOUCH
    header = replace(
        state.header,
        changed=state.header.changed if is_touch else stamp,
        fence=max(state.header.fence, operation.fence),
    )
    is_kept = len(answer) <= MAX_ANSWER_BYTES
    applied, kept = (Applied.APPLIED, answer) if is_kept else (Applied.ANSWER_LOST, b"")
    entry = Entry(operation.caller, operation.number, header.changed, applied, kept)
    after = after._replace(header=_with(header, entry))
    return Decision(ChangeOutcome.APPLIED, header.changed, answer, after)


def refuse(operation: Operation, state: State) -> Decision:
    """Return the answer to an operation that cannot be applied to a value; see ``apply``.

    A request that was repeated leaves an entry, so that no late copy of it is applied (D7).
    """
    return _not_applied(operation, state, ChangeOutcome.UNCHANGED)


def _fence(operation: Operation, state: State) -> Stamp:
    """Return the fencing token that an operation needs at least; 0 if it has none."""
    return state.header.fence if operation.fence else 0


def _known(operation: Operation, state: State) -> Decision | None:
    """Return the answer of a request that was decided before; None if it was not."""
    entries = [entry for entry in state.header.entries if entry.caller == operation.caller]
    for entry in entries:
        if entry.number == operation.number:
            is_lost = entry.outcome == Applied.ANSWER_LOST
            outcome = ChangeOutcome.APPLIED if is_lost else ChangeOutcome(entry.outcome)
            return Decision(outcome, entry.changed, entry.answer, is_answer_lost=is_lost)
    if any(entry.number > operation.number for entry in entries):
        return _forgotten(state)
    return None


def _forgotten(state: State) -> Decision:
    return Decision(ChangeOutcome.FORGOTTEN, _newest(state))


def _newest(state: State) -> Stamp:
    """Return the highest number that a register remembers, or has forgotten."""
    entries = state.header.entries
    return max(state.header.forgotten, entries[-1].number if entries else 0)


def _not_applied(operation: Operation, state: State, outcome: ChangeOutcome) -> Decision:
    """Return a negative answer. That to a repeated request is kept, so that it stays true (D7)."""
    if not operation.repeated:
        return Decision(outcome, state.version)
    entry = Entry(operation.caller, operation.number, state.version, int(outcome))
    after = state._replace(header=_with(state.header, entry))
    return Decision(outcome, state.version, b"", after)


def _change(operation: Operation, state: State) -> tuple[State, bytes] | None:
    """Return the state after an operation, and its answer; None if it changes nothing."""
    expiry = operation.expiry
    kept = state.expiry if expiry is None else expiry
    before = b"" if state.is_absent else state.value
    if operation.kind in (ChangeKind.PUT, ChangeKind.SWAP):
        after = state._replace(value=operation.value, expiry=kept, is_absent=False)
        return after, before if operation.kind is ChangeKind.SWAP else b""
    if operation.kind is ChangeKind.INCREMENT:
        return _increment(operation, state, kept)
    if state.is_absent:
        return None
    if operation.kind is ChangeKind.TOUCH:
        return (state._replace(expiry=kept), b"") if kept != state.expiry else None
    gone = state._replace(value=b"", expiry=NEVER, is_absent=True)
    return gone, before if operation.kind is ChangeKind.POP else b""


def _increment(operation: Operation, state: State, expiry: int) -> tuple[State, bytes] | None:
    present = operation.initial if state.is_absent else _integer(state.value)
    total = present + operation.amount
    if not operation.at_least <= total <= operation.at_most:
        return None
    if not MIN_INTEGER <= total <= MAX_INTEGER:
        raise UsageError(f"{present} + {operation.amount} leaves the range of 64-bit integers")
    packed: bytes = msgpack.packb(total)
    return state._replace(value=packed, expiry=expiry, is_absent=False), packed


def _integer(value: bytes) -> int:
    """Return the integer that a value is; ``UsageError`` if it is something else."""
    if len(value) <= 9:
        number = msgpack.unpackb(value)
        if type(number) is int:
            return number
    raise UsageError("the value is not an integer, so it cannot be incremented")


def _with(header: Header, entry: Entry) -> Header:
    """Return a header with another entry, without those that are not needed any more (D8).

    An entry of the same caller has a lower number: a late copy of that request is recognised by the
    new entry.
    """
    entries = [kept for kept in header.entries if kept.caller != entry.caller]
    insort(entries, entry, key=_number_of)
    newest = stamp_milliseconds(entries[-1].number)
    keep_ms = _KEEP_MANY_MS if len(entries) > _MANY else _KEEP_MS
    oldest = stamp_at(max(0, newest - keep_ms))
    first = max(bisect_left(entries, oldest, key=_number_of), len(entries) - MAX_ENTRIES)
    forgotten = max(header.forgotten, entries[first - 1].number) if first else header.forgotten
    return replace(header, forgotten=forgotten, entries=tuple(entries[first:]))
