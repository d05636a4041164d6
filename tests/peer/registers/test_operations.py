"""What operations do to a register, and that each request is applied once."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.errors import UsageError
from dstash.peer.registers.operations import Decision, Operation, State, apply, read, write
from dstash.store.record import build_record
from dstash.store.register.header import MAX_ENTRIES, check_register
from dstash.types import NEVER
from dstash.version import pack, stamp_at, write_stamp
from dstash.wire.registers import ANY, MISSING
from dstash.wire.registers import ChangeKind as Kind
from dstash.wire.registers import ChangeOutcome as Outcome

NOW = 1_800_000_000_000
CALLER = b"caller01"
BIG = msgpack.packb("x" * 40)


class Register:
    """A register to which operations are applied, one after the other."""

    def __init__(self, horizon: int = 0) -> None:
        self.state = read(None, horizon)
        self._steps = count(1)
        self._numbers = count(1)

    def do(self, kind: Kind, number: int = 0, **fields: Any) -> Decision:
        """Apply an operation of a new request, and write what it writes."""
        number = number or stamp_at(NOW, next(self._numbers))
        caller = fields.pop("caller", CALLER)
        return self.send(Operation(kind, caller, number, **fields))

    def send(self, operation: Operation) -> Decision:
        version = pack(stamp_at(NOW, next(self._steps)), b"abcd")
        decision = apply(operation, self.state, version)
        if decision.state is not None:
            record = build_record(b"@r", b"k", write(decision.state, version))
            check_register(record)
            self.state = read(record, 0)
            assert self.state == decision.state, "it is the same on disk"
        return decision

    @property
    def value(self) -> Any:
        return None if self.state.is_absent else msgpack.unpackb(self.state.value)


@pytest.fixture
def register() -> Register:
    return Register()


def test_version_grows_with_every_change_also_across_a_delete(register: Register) -> None:
    versions = [
        register.do(Kind.PUT, value=b"\x01").version,
        register.do(Kind.PUT, value=b"\x01").version,
        register.do(Kind.DELETE).version,
        register.do(Kind.PUT, value=b"\x02", expected=MISSING).version,
        register.do(Kind.INCREMENT, amount=1).version,
    ]
    assert versions == sorted(set(versions))
    assert register.state.version == versions[-1]


def test_compare_and_set_needs_the_expected_version(register: Register) -> None:
    first = register.do(Kind.PUT, value=b"\x01").version
    assert register.do(Kind.PUT, value=b"\x02", expected=first - 1) == Decision(
        Outcome.CONFLICT, first
    )
    assert register.do(Kind.PUT, value=b"\x02", expected=first).outcome is Outcome.APPLIED
    assert register.do(Kind.PUT, value=b"\x03", expected=first).outcome is Outcome.CONFLICT
    assert register.value == 2


def test_add_needs_an_absent_register(register: Register) -> None:
    assert register.do(Kind.PUT, value=b"\x01", expected=MISSING).outcome is Outcome.APPLIED
    assert register.do(Kind.PUT, value=b"\x02", expected=MISSING).outcome is Outcome.CONFLICT
    register.do(Kind.DELETE)
    assert register.do(Kind.PUT, value=b"\x03", expected=MISSING).outcome is Outcome.APPLIED
    assert register.value == 3


def test_swap_and_pop_answer_the_value_before(register: Register) -> None:
    assert register.do(Kind.SWAP, value=b"\x01").answer == b""
    assert register.do(Kind.SWAP, value=b"\x02").answer == b"\x01"
    assert register.do(Kind.POP).answer == b"\x02"
    assert register.do(Kind.POP).outcome is Outcome.UNCHANGED
    assert register.value is None


def test_increment_begins_with_initial_and_respects_bounds(register: Register) -> None:
    assert register.do(Kind.INCREMENT, amount=5, initial=10).answer == b"\x0f"
    assert register.do(Kind.INCREMENT, amount=1, at_most=15).outcome is Outcome.UNCHANGED
    assert register.do(Kind.INCREMENT, amount=-16, at_least=0).outcome is Outcome.UNCHANGED
    assert register.do(Kind.INCREMENT, amount=-15, at_least=0).answer == b"\x00"


@pytest.mark.parametrize("value", [b"\xa1x", b"\xcb" + bytes(8), b"\xc3", b"\xc0", BIG])
def test_increment_of_another_type_is_refused(register: Register, value: bytes) -> None:
    register.do(Kind.PUT, value=value)
    before = register.state
    with pytest.raises(UsageError, match="not an integer"):
        register.do(Kind.INCREMENT, amount=1)
    assert register.state == before


def test_increment_beyond_64_bits_is_refused(register: Register) -> None:
    register.do(Kind.INCREMENT, amount=2**63 - 1)
    with pytest.raises(UsageError, match="leaves the range of 64-bit integers"):
        register.do(Kind.INCREMENT, amount=1, at_most=2**64)
    assert register.value == 2**63 - 1


def test_touch_changes_the_expiry_and_keeps_the_version(register: Register) -> None:
    version = register.do(Kind.PUT, value=b"\x01", expiry=NOW + 5).version
    decision = register.do(Kind.TOUCH, expiry=NOW + 9, expected=version)
    assert (decision.outcome, decision.version) == (Outcome.APPLIED, version)
    assert (register.state.expiry, register.state.version) == (NOW + 9, version)
    assert register.do(Kind.TOUCH, expiry=NOW + 9).outcome is Outcome.UNCHANGED


def test_expiry_is_kept_unless_given_and_ends_with_the_value(register: Register) -> None:
    register.do(Kind.PUT, value=b"\x01", expiry=NOW + 5)
    register.do(Kind.PUT, value=b"\x02")
    assert register.state.expiry == NOW + 5
    register.do(Kind.PUT, value=b"\x02", expiry=NEVER)
    assert register.state.expiry == NEVER
    register.do(Kind.TOUCH, expiry=NOW + 7)
    register.do(Kind.DELETE)
    register.do(Kind.PUT, value=b"\x01")
    assert register.state.expiry == NEVER


def test_write_below_the_fence_is_refused(register: Register) -> None:
    assert register.do(Kind.PUT, value=b"\x01", fence=20).outcome is Outcome.APPLIED
    assert register.do(Kind.PUT, value=b"\x02", fence=19).outcome is Outcome.CONFLICT
    assert register.do(Kind.PUT, value=b"\x03", fence=20).outcome is Outcome.APPLIED
    assert register.do(Kind.PUT, value=b"\x04").outcome is Outcome.APPLIED, "it has no token"
    assert register.value == 4


class TestExactlyOnce:
    """Requests that are repeated."""

    def test_repeated_request_gets_its_answer_again(self, register: Register) -> None:
        operation = Operation(Kind.INCREMENT, CALLER, stamp_at(NOW, 1), amount=1)
        first = register.send(operation)
        register.do(Kind.INCREMENT, caller=b"another1", amount=1)
        again = register.send(replace(operation, repeated=True))
        assert (again.outcome, again.version, again.answer) == first[:3]
        assert again.state is None
        assert register.value == 2

    def test_older_request_of_a_caller_is_forgotten(self, register: Register) -> None:
        register.do(Kind.INCREMENT, number=stamp_at(NOW, 5), amount=1)
        late = register.do(Kind.INCREMENT, number=stamp_at(NOW, 4), amount=1, repeated=True)
        assert late.outcome is Outcome.FORGOTTEN
        assert register.value == 1

    def test_request_up_to_the_horizon_is_forgotten_by_a_new_register(self) -> None:
        register = Register(horizon=stamp_at(NOW, 5))
        for number, outcome in ((5, Outcome.FORGOTTEN), (6, Outcome.APPLIED)):
            decision = register.do(Kind.PUT, number=stamp_at(NOW, number), value=b"\x01")
            assert decision.outcome is outcome

    def test_negative_answer_to_repeated_request_stays_true(self, register: Register) -> None:
        register.do(Kind.PUT, value=b"\x01")
        copy = Operation(Kind.PUT, b"another1", stamp_at(NOW, 9), value=b"\x02", expected=MISSING)
        assert register.send(replace(copy, repeated=True)).outcome is Outcome.CONFLICT
        register.do(Kind.DELETE)
        assert register.send(copy).outcome is Outcome.CONFLICT, "the copy that was late"
        assert register.value is None

    def test_negative_answer_to_single_request_writes_nothing(self, register: Register) -> None:
        register.do(Kind.PUT, value=b"\x01")
        assert register.do(Kind.PUT, value=b"\x02", expected=MISSING).state is None
        assert register.do(Kind.TOUCH).state is None

    def test_large_answer_is_not_kept(self, register: Register) -> None:
        register.do(Kind.PUT, value=BIG)
        operation = Operation(Kind.POP, CALLER, stamp_at(NOW, 9))
        assert register.send(operation).answer == BIG
        again = register.send(replace(operation, repeated=True))
        assert (again.outcome, again.answer, again.is_answer_lost) == (
            Outcome.APPLIED,
            b"",
            True,
        )

    def test_answer_of_absent_register_is_not_lost(self, register: Register) -> None:
        operation = Operation(Kind.SWAP, CALLER, stamp_at(NOW, 9), value=b"\x01")
        assert register.send(operation)[:3] == register.send(operation)[:3]
        assert not register.send(operation).is_answer_lost

    def test_entries_leave_by_age_and_are_forgotten(self, register: Register) -> None:
        callers = [b"caller-1", b"caller-2", b"caller-3"]
        register.do(Kind.PUT, number=stamp_at(NOW), value=b"\x01", caller=callers[0])
        register.do(Kind.PUT, number=stamp_at(NOW + 60_000), value=b"\x02", caller=callers[1])
        assert (len(register.state.header.entries), register.state.header.forgotten) == (2, 0)
        register.do(Kind.PUT, number=stamp_at(NOW + 60_001), value=b"\x03", caller=callers[2])
        assert len(register.state.header.entries) == 2
        assert register.state.header.forgotten == stamp_at(NOW)
        late = register.do(Kind.PUT, number=stamp_at(NOW), value=b"\x01", caller=b"another1")
        assert late.outcome is Outcome.FORGOTTEN

    def test_caller_has_its_last_entry_only(self, register: Register) -> None:
        first = Operation(Kind.INCREMENT, CALLER, stamp_at(NOW, 1), amount=1)
        register.send(first)
        register.do(Kind.INCREMENT, caller=b"another1", number=stamp_at(NOW, 2), amount=1)
        register.send(replace(first, number=stamp_at(NOW, 3)))
        numbers = [entry.number for entry in register.state.header.entries]
        assert numbers == [stamp_at(NOW, 2), stamp_at(NOW, 3)]
        late = register.send(replace(first, repeated=True))
        assert (late.outcome, register.value) == (Outcome.FORGOTTEN, 3)

    def test_entries_are_in_the_order_of_their_numbers(self, register: Register) -> None:
        for number in (5, 2, 9, 4):
            caller = number.to_bytes(8, "big")
            register.do(Kind.INCREMENT, stamp_at(NOW, number), amount=1, caller=caller)
        numbers = [entry.number for entry in register.state.header.entries]
        assert numbers == [stamp_at(NOW, number) for number in (2, 4, 5, 9)]

    def test_entries_are_limited(self, register: Register) -> None:
        for number in range(1, MAX_ENTRIES + 3):
            caller = number.to_bytes(8, "big")
            register.do(Kind.INCREMENT, stamp_at(NOW, number), amount=1, caller=caller)
        assert len(register.state.header.entries) == MAX_ENTRIES
        assert register.state.header.forgotten == stamp_at(NOW, 2)


operations = st.builds(
    Operation,
    st.sampled_from(Kind),
    st.sampled_from([b"caller01", b"caller02"]),
    st.integers(1, 6).map(lambda number: stamp_at(NOW, number)),
    st.booleans(),
    st.sampled_from([ANY, ANY, MISSING]),
    st.sampled_from([b"\x01", b"\x02"]),
    st.integers(-2, 2),
)


@given(st.lists(operations, max_size=12))
def test_no_request_is_applied_twice(sent: list[Operation]) -> None:
    register = Register()
    applied = set()
    for operation in sent:
        decision = register.send(operation)
        name = operation.caller, operation.number
        if decision.outcome is Outcome.APPLIED and decision.state is not None:
            assert name not in applied
            applied.add(name)
        if decision.state is not None:
            assert isinstance(decision.state, State)
            assert decision.state.header.changed <= write_stamp(pack(stamp_at(NOW, 999), b"abcd"))
