"""Registers of which some voters have promised rounds that are far ahead of the clocks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.errors import ClockSkew
from dstash.store.record import build_record, open_record, partition_of
from dstash.store.register.ballot import Promise, pack_promise
from dstash.store.register.header import pack_header, split
from dstash.version import stamp_at
from dstash.wire.registers import ChangeKind as Kind
from dstash.wire.registers import ChangeOutcome as Outcome
from tests.harness.joined import Joined
from tests.harness.registers import Callers

HOUR = 3_600_000
KEY = b"k"
PLACE = partition_of(KEY).to_bytes(2, "big") + b"\x02@r" + KEY


@pytest.fixture
def joined() -> Joined:
    return Joined(registers=True)


@pytest.fixture
def callers(joined: Joined) -> Callers:
    """Clients that have set a register to 1."""
    callers = Callers(joined)
    callers.run(callers.change(Kind.PUT, KEY, values=[b"\x01"]))
    joined.settle()
    return callers


def promise_of_the_future(joined: Joined, *names: str, ahead: int = HOUR) -> int:
    """Let peers promise a round that is ``ahead`` (ms) of the clocks; returns it."""
    number = joined.now + ahead
    for name in names:
        joined.stores[name].promises[PLACE] = pack_promise(PLACE, Promise(number, b"dead"))
    return number


def wait(joined: Joined, duration: int) -> None:
    """Let ``duration`` (ms) pass."""
    for _ in range(duration // 50):
        joined.now += 50
        joined.settle()


@pytest.mark.parametrize("home", ["a", "b", "c"])
def test_promise_of_one_voter_does_not_block_the_others(
    joined: Joined, callers: Callers, home: str
) -> None:
    number = promise_of_the_future(joined, "a")
    for value in (b"\x02", b"\x03"):
        result = callers.run(callers.change(Kind.INCREMENT, KEY, home=home)).result
        assert (result.outcome, result.value) == (Outcome.APPLIED, value)
        assert result.version < stamp_at(number)


def test_round_continues_above_the_promises_of_a_quorum(joined: Joined, callers: Callers) -> None:
    """Also after b was silent, when c alone could not do without a."""
    number = promise_of_the_future(joined, "a", "b")
    joined.mute.add("b")
    change = callers.change(Kind.INCREMENT, KEY, home="c")
    wait(joined, 1500)
    joined.mute.clear()
    result = callers.run(change).result
    assert (result.outcome, result.value) == (Outcome.APPLIED, b"\x02")
    assert result.version > stamp_at(number)
    wait(joined, 20_000)
    assert len({joined.stores[name].records[PLACE] for name in "abc"}) == 1


def test_round_is_led_above_promises_that_are_far_apart(joined: Joined, callers: Callers) -> None:
    """No quorum exists without one of them, so the one with the lower round has to follow."""
    promise_of_the_future(joined, "a")
    number = promise_of_the_future(joined, "b", ahead=2 * HOUR)
    result = callers.run(callers.change(Kind.INCREMENT, KEY, home="c")).result
    assert (result.outcome, result.value) == (Outcome.APPLIED, b"\x02")
    assert result.version > stamp_at(number)
    result = callers.run(callers.change(Kind.INCREMENT, KEY, home="a")).result
    assert (result.outcome, result.value) == (Outcome.APPLIED, b"\x03")


def test_silent_voter_leads_no_round_into_the_future(joined: Joined, callers: Callers) -> None:
    number = promise_of_the_future(joined, "a")
    joined.mute.add("b")
    change = callers.change(Kind.INCREMENT, KEY, home="c")
    wait(joined, 1500)
    joined.mute.clear()
    result = callers.run(change).result
    assert (result.outcome, result.value) == (Outcome.APPLIED, b"\x02")
    assert result.version < stamp_at(number)


@pytest.fixture
def forgotten(joined: Joined, callers: Callers) -> int:
    """A number of the future that all replicas of the register have forgotten; returns it."""
    number = stamp_at(joined.now + HOUR)
    for store in joined.stores.values():
        found = open_record(store.records[PLACE])
        header, value = split(found.payload)
        payload = pack_header(replace(header, forgotten=number, entries=())) + value
        store.records[PLACE] = build_record(b"@r", KEY, found._replace(payload=payload))
    return number


def test_register_that_forgot_numbers_of_the_future_takes_the_next(
    callers: Callers, forgotten: int
) -> None:
    refused = callers.run(callers.change(Kind.INCREMENT, KEY, home="b")).result
    assert (refused.outcome, refused.version) == (Outcome.FORGOTTEN, forgotten)
    for number in (forgotten + 1, forgotten + 2):
        sent = callers.change(Kind.INCREMENT, KEY, home="b", number=number, is_ahead=True)
        assert callers.run(sent).result.outcome is Outcome.APPLIED
    again = callers.change(
        Kind.INCREMENT, KEY, home="b", number=number, is_ahead=True, repeated=True
    )
    assert callers.run(again).result.value == b"\x03", "it is applied once"
    other = callers.change(
        Kind.INCREMENT, KEY, home="b", caller=b"caller02", number=number, is_ahead=True
    )
    assert callers.run(other).result.value == b"\x04"


def test_number_of_the_future_must_be_next(callers: Callers, forgotten: int) -> None:
    far = forgotten + stamp_at(2)
    refused = callers.run(
        callers.change(Kind.INCREMENT, KEY, home="b", number=far, is_ahead=True)
    ).result
    assert (refused.outcome, refused.version) == (Outcome.FORGOTTEN, forgotten)
    error = callers.run(callers.change(Kind.INCREMENT, KEY, home="b", number=forgotten + 1)).error
    assert isinstance(error, ClockSkew)


def test_corrupt_register_with_a_bound_of_the_future_is_replaced() -> None:
    """The other one of two replicas follows it, because no quorum exists below the bound (V4)."""
    joined = Joined("ab", replicas=2, registers=True)
    callers = Callers(joined)
    callers.run(callers.change(Kind.PUT, KEY, values=[b"\x01"]))
    store, ahead = joined.stores["a"], stamp_at(joined.now + HOUR)
    store.high_water = ahead
    store.records[PLACE] = store.records[PLACE][:-1] + b"?"
    result = callers.run(callers.change(Kind.INCREMENT, KEY, home="b")).result
    assert (result.outcome, result.value) == (Outcome.APPLIED, b"\x02")
    assert result.version > ahead


@pytest.mark.parametrize("home", ["a", "b", "c"])
def test_corrupt_register_is_no_voter_that_can_do_without_the_promise_of_another(
    joined: Joined, callers: Callers, home: str
) -> None:
    """Without a, which promised more, b and c are a quorum, but b cannot show what it holds."""
    promise_of_the_future(joined, "b", "c")
    number = promise_of_the_future(joined, "a", ahead=HOUR + 3000)
    store = joined.stores["b"]
    store.high_water = stamp_at(joined.now + HOUR)
    store.records[PLACE] = store.records[PLACE][:-1] + b"?"
    for value in (b"\x02", b"\x03"):
        result = callers.run(callers.change(Kind.INCREMENT, KEY, home=home)).result
        assert (result.outcome, result.value) == (Outcome.APPLIED, value)
    assert result.version > stamp_at(number)
