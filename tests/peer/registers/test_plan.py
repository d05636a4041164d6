"""What a proposer writes: registers that are nearly as large as voters take."""

from __future__ import annotations

import pytest

from dstash.errors import DStashError, LimitError, TimedOut, UsageError
from dstash.limits import MAX_VALUE_BYTES
from dstash.peer.registers.operations import Operation, State
from dstash.peer.registers.pending import Answer, Pending
from dstash.peer.registers.plan import Ballot, plan
from dstash.store.register.header import Header, pack_header
from dstash.types import NEVER
from dstash.version import stamp_at
from dstash.wire.registers import MISSING, ChangeKind

NOW = 1_800_000_000_000
LAST = Ballot(NOW, 0, b"abcd")
FULL = MAX_VALUE_BYTES - len(pack_header(Header(1)))


def refused(size: int, kind: ChangeKind, *, repeated: bool) -> tuple[DStashError | None, int]:
    """Return the error, and how many steps were taken, of a request that cannot be applied."""
    answers: list[Answer] = []
    operation = Operation(
        kind, b"caller01", stamp_at(NOW), repeated=repeated, expected=MISSING, value=bytes(size)
    )
    if kind is ChangeKind.INCREMENT:
        operation = Operation(kind, b"caller01", stamp_at(NOW), repeated=repeated, amount=1)
    state = State(Header(1), bytes(size), NEVER, is_absent=False)
    planned = plan([Pending(operation, answers.append)], state, LAST, 0)
    [item] = planned.planned
    written = planned.state
    assert len(written.value) + len(pack_header(written.header)) <= MAX_VALUE_BYTES
    return item.answer.error, planned.ballot.step - LAST.step


@pytest.mark.parametrize("kind", [ChangeKind.INCREMENT, ChangeKind.PUT])
def test_repeated_request_is_not_final_when_its_id_does_not_fit(kind: ChangeKind) -> None:
    error, steps = refused(FULL, kind, repeated=True)
    assert isinstance(error, TimedOut)
    assert steps == 0


def test_repeated_request_that_fails_leaves_its_id_when_it_fits() -> None:
    error, steps = refused(FULL - 100, ChangeKind.INCREMENT, repeated=True)
    assert isinstance(error, UsageError)
    assert steps == 1


def test_single_request_that_fails_on_a_full_register_is_final() -> None:
    error, steps = refused(FULL, ChangeKind.INCREMENT, repeated=False)
    assert isinstance(error, UsageError)
    assert not isinstance(error, LimitError)
    assert steps == 0
