"""Changes of registers: request ids, copies, and the outcome of each key."""

from __future__ import annotations

from typing import Any

import pytest

from dstash.client.operations.registers.wanted import Wanted
from dstash.errors import (
    AnswerLost,
    BatchError,
    Busy,
    ClockSkew,
    Conflict,
    DiskFull,
    DStashError,
    Forgotten,
    NotReady,
    StaleEpoch,
    TimedOut,
    Unavailable,
    UsageError,
)
from dstash.types import Outcome
from dstash.version import stamp_at
from dstash.wire import codec
from dstash.wire.registers import MISSING, Amounts, ChangeKind, ChangeOutcome, unpack_numbers
from tests.client.operations.registers.exchange import NOW, PATIENCE, Exchange, changed, cluster

APPLIED, CONFLICT, UNCHANGED = (
    ChangeOutcome.APPLIED,
    ChangeOutcome.CONFLICT,
    ChangeOutcome.UNCHANGED,
)
FORGOTTEN, REJECTED, LOST = (
    ChangeOutcome.FORGOTTEN,
    ChangeOutcome.REJECTED,
    ChangeOutcome.ANSWER_LOST,
)
ADD = Wanted(ChangeKind.PUT, expected=MISSING, is_add=True)


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


def outcome_of(exchange: Exchange, key: str = "k") -> tuple[Any, Any]:
    """Return the outcome and the class of the error of a key; the call must have ended."""
    assert exchange.operation.done
    result = exchange.operation.result()
    return result.outcomes.get(key), type(result.errors.get(key))


def test_change_is_sent_to_the_first_replica_in_rank_order(exchange: Exchange) -> None:
    exchange.change("k")
    [send] = exchange.sent
    assert send.peer == exchange.session.replicas_of(b"k")[0]
    request = exchange.request()
    assert (request.index, request.operation, request.repeated) == ("@i", 1, False)
    assert len(request.caller) == 8
    assert request.number >= stamp_at(NOW)
    exchange.answer(0, changed(APPLIED, version=77))
    result = exchange.operation.result()
    assert (result.ok, result.stored, result.versions) == (True, 1, {"k": 77})


def test_change_avoids_a_suspect_home(exchange: Exchange) -> None:
    first, second, _ = exchange.session.replicas_of(b"k")
    exchange.session.suspect(first, NOW)
    exchange.change("k")
    assert exchange.sent[0].peer == second


def test_keys_of_a_call_are_grouped_by_home_and_have_one_request_id(exchange: Exchange) -> None:
    exchange.change(*map(str, range(50)))
    requests = [exchange.request(place) for place in range(len(exchange.sent))]
    assert {send.peer for send in exchange.sent} == {"a", "b", "c"}
    assert len({(request.caller, request.number) for request in requests}) == 1
    keys = [key for request in requests for key in codec.unpack_keys(request.keys)]
    assert sorted(keys) == sorted(str(number).encode() for number in range(50))


def test_few_requests_of_a_batch_are_pending(exchange: Exchange) -> None:
    exchange.change(*map(str, range(10_000)))
    assert 6 <= len(exchange.sent) < 12
    assert {send.peer for send in exchange.sent} == {"a", "b", "c"}


def test_conditions_and_amounts_follow_their_keys(exchange: Exchange) -> None:
    versions = {str(number): number + 1 for number in range(20)}
    exchange.change(*versions, wanted=Wanted(ChangeKind.PUT, expected=versions))
    for place in range(len(exchange.sent)):
        request = exchange.request(place)
        keys = [key.decode() for key in codec.unpack_keys(request.keys)]
        assert unpack_numbers(request.expected) == [versions[key] for key in keys]


def test_busy_home_gets_the_same_request_again_with_the_flag(exchange: Exchange) -> None:
    exchange.change("k")
    exchange.answer(0, Busy("too many requests", retry_after_ms=300))
    assert len(exchange.sent) == 1
    exchange.wait(299)
    assert len(exchange.sent) == 1
    exchange.wait(300)
    first, second = exchange.request(0), exchange.request(1)
    assert exchange.sent[0].peer == exchange.sent[1].peer
    assert (first.repeated, second.repeated) == (False, True)
    assert (first.caller, first.number) == (second.caller, second.number)


def test_copies_state_the_epoch_in_which_their_number_was_made(exchange: Exchange) -> None:
    exchange.change("k")
    later = cluster(epoch=8)
    exchange.answer(0, StaleEpoch("old", topology=later.encode()))
    exchange.wait()
    first, second = exchange.request(0), exchange.request(1)
    assert exchange.session.epoch == 8
    assert (first.epoch, second.epoch) == (7, 7)
    assert (first.number, second.repeated) == (second.number, True)
    exchange.answer(1, changed(APPLIED))
    assert exchange.operation.result().ok


def test_silent_home_is_followed_by_the_next_rank(exchange: Exchange) -> None:
    exchange.change("k")
    exchange.wait(PATIENCE - 1)
    assert len(exchange.sent) == 1
    exchange.wait(1)
    assert [send.peer for send in exchange.sent] == list(exchange.session.replicas_of(b"k")[:2])
    assert exchange.request(1).repeated


def test_lost_connection_is_followed_by_the_next_rank_at_once(exchange: Exchange) -> None:
    exchange.change("k")
    exchange.lose(0)
    assert len(exchange.sent) == 2
    assert exchange.request(1).repeated


def test_request_that_was_not_sent_is_no_copy(exchange: Exchange) -> None:
    exchange.change("k", wanted=ADD)
    exchange.unsend(0)
    assert not exchange.request(1).repeated
    exchange.answer(1, changed(CONFLICT))
    assert exchange.operation.result().unchanged == {"k": 5}


def test_all_homes_are_asked_again_after_a_pause(exchange: Exchange) -> None:
    exchange.change("k")
    for place in range(3):
        exchange.answer(place, NotReady("starting"))
    assert len(exchange.sent) == 3
    exchange.wait()
    replicas = exchange.session.replicas_of(b"k")
    assert [send.peer for send in exchange.sent] == [*replicas, replicas[0]]
    exchange.answer(3, changed(APPLIED))
    assert exchange.operation.result().ok


class TestCopies:
    """A request that was sent twice (rule D7)."""

    def test_negative_answer_to_an_earlier_copy_is_ignored(self, exchange: Exchange) -> None:
        exchange.change("k", wanted=ADD)
        exchange.wait(PATIENCE)
        exchange.answer(0, changed(CONFLICT))
        assert not exchange.operation.done
        exchange.answer(1, changed(APPLIED, version=9))
        result = exchange.operation.result()
        assert (result.versions, result.unchanged) == ({"k": 9}, {})

    def test_positive_answer_to_an_earlier_copy_counts(self, exchange: Exchange) -> None:
        exchange.change("k", wanted=ADD)
        exchange.wait(PATIENCE)
        exchange.answer(0, changed(APPLIED, version=9))
        assert exchange.operation.done
        assert exchange.operation.result().versions == {"k": 9}

    def test_negative_answer_to_the_last_copy_is_final(self, exchange: Exchange) -> None:
        exchange.change("k", wanted=ADD)
        exchange.wait(PATIENCE)
        exchange.answer(1, changed(CONFLICT))
        assert exchange.operation.done
        assert exchange.operation.result().unchanged == {"k": 5}

    def test_error_of_an_earlier_copy_does_not_send_another(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.wait(PATIENCE)
        exchange.answer(0, NotReady("stopping"))
        assert len(exchange.sent) == 2

    def test_refusal_of_the_last_copy_is_final(self, exchange: Exchange) -> None:
        exchange.change("k", wanted=Wanted(ChangeKind.INCREMENT, amounts=Amounts(1)))
        exchange.wait(PATIENCE)
        exchange.answer(0, changed(REJECTED, rejected=UsageError("not an integer")))
        assert not exchange.operation.done
        exchange.answer(1, changed(REJECTED, rejected=UsageError("not an integer")))
        assert outcome_of(exchange) == (Outcome.FAILED, UsageError)

    def test_key_is_unknown_if_an_earlier_copy_may_be_applied(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.wait(PATIENCE)
        exchange.answer(1, UsageError("no such operation"))
        assert outcome_of(exchange) == (Outcome.UNKNOWN, TimedOut)

    def test_key_is_sent_again_until_its_accept_is_decided(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.answer(0, changed(REJECTED, rejected=TimedOut("no quorum yet")))
        exchange.wait()
        assert exchange.request(1).repeated
        exchange.expire()
        assert outcome_of(exchange) == (Outcome.UNKNOWN, TimedOut)

    def test_emitted_accept_stays_unknown_when_later_copies_fail(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.answer(0, changed(REJECTED, rejected=TimedOut("no quorum yet")))
        exchange.answer(1, NotReady("stopping"))
        exchange.answer(2, NotReady("stopping"))
        exchange.expire()
        assert outcome_of(exchange) == (Outcome.UNKNOWN, TimedOut)


class TestForgotten:
    def test_request_sent_once_gets_another_number(self, exchange: Exchange) -> None:
        exchange.change("k")
        past = exchange.request().number + 1000
        exchange.answer(0, changed(FORGOTTEN, version=past))
        exchange.wait()
        second = exchange.request(1)
        assert not second.repeated
        assert second.number > past
        exchange.answer(1, changed(APPLIED))
        assert exchange.operation.result().ok

    def test_number_of_the_future_is_used_for_one_request(self, exchange: Exchange) -> None:
        exchange.change("k")
        future = stamp_at(NOW + 3_600_000)
        exchange.answer(0, changed(FORGOTTEN, version=future))
        exchange.wait()
        second = exchange.request(1)
        assert (second.number, second.is_ahead, second.repeated) == (future + 1, True, False)
        exchange.answer(1, ClockSkew("a home of an earlier version"))
        exchange.wait()
        third = exchange.request(2)
        assert third.number < future
        assert not third.is_ahead
        exchange.answer(2, changed(APPLIED))
        assert exchange.operation.result().ok

    def test_request_sent_twice_is_unknown(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.wait(PATIENCE)
        exchange.answer(1, changed(FORGOTTEN))
        assert outcome_of(exchange) == (Outcome.UNKNOWN, TimedOut)
        assert exchange.operation.result().errors["k"].details == {"because": Forgotten.code}

    def test_copy_after_a_refused_request_is_unknown(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.answer(0, NotReady("starting"))
        exchange.answer(1, changed(FORGOTTEN))
        assert outcome_of(exchange) == (Outcome.UNKNOWN, TimedOut)

    def test_number_ahead_of_the_clock_of_the_home_is_renewed(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.answer(0, ClockSkew("the number is 900 ms ahead"))
        exchange.wait()
        first, second = exchange.request(0), exchange.request(1)
        assert not second.repeated
        assert (first.caller, first.number) != (second.caller, second.number)


class TestOutcomes:
    @pytest.mark.parametrize(
        ("wanted", "outcome", "version", "text"),
        [
            (Wanted(ChangeKind.PUT, expected=4), CONFLICT, 5, "has version 5; version 4 was"),
            (Wanted(ChangeKind.PUT, expected=4), CONFLICT, 0, "does not exist; version 4 was"),
            (Wanted(ChangeKind.DELETE, expected=4), CONFLICT, 5, "has version 5; version 4 was"),
            (Wanted(ChangeKind.PUT, fence=3), CONFLICT, 5, "with a fencing token above 3"),
            (Wanted(ChangeKind.PUT, expected=MISSING), CONFLICT, 5, "an absent key was expected"),
            (ADD._replace(fence=3), CONFLICT, 0, "token above 3"),
            (
                Wanted(ChangeKind.INCREMENT, amounts=Amounts(1, at_most=5)),
                UNCHANGED,
                5,
                "the sum would be out of its bounds",
            ),
        ],
    )
    def test_refused_change_is_a_conflict_with_the_present_version(
        self, exchange: Exchange, wanted: Wanted, outcome: ChangeOutcome, version: int, text: str
    ) -> None:
        exchange.change("k", wanted=wanted)
        exchange.answer(0, changed(outcome, version=version))
        assert outcome_of(exchange) == (Outcome.FAILED, Conflict)
        error = exchange.operation.result().errors["k"]
        assert text in str(error)
        assert error.details == {"version": version}

    @pytest.mark.parametrize(
        ("wanted", "outcome", "version", "stored"),
        [
            (ADD, CONFLICT, 5, 0),
            (Wanted(ChangeKind.DELETE), UNCHANGED, 0, 1),
            (Wanted(ChangeKind.POP), UNCHANGED, 0, 1),
            (Wanted(ChangeKind.TOUCH, ttl=5), UNCHANGED, 5, 0),
        ],
    )
    def test_change_with_nothing_to_do_is_no_error(
        self, exchange: Exchange, wanted: Wanted, outcome: ChangeOutcome, version: int, stored: int
    ) -> None:
        exchange.change("k", wanted=wanted)
        exchange.answer(0, changed(outcome, version=version))
        result = exchange.operation.result()
        assert (result.ok, result.unchanged, result.stored) == (True, {"k": version}, stored)
        assert result.deleted == 0

    def test_values_are_decoded(self, exchange: Exchange) -> None:
        exchange.change("k", wanted=Wanted(ChangeKind.SWAP))
        exchange.answer(0, changed(APPLIED, value={1: {2}}))
        assert exchange.operation.result().values == {"k": {1: {2}}}

    def test_swap_whose_answer_was_not_kept_is_applied(self, exchange: Exchange) -> None:
        exchange.change("k", wanted=Wanted(ChangeKind.SWAP))
        exchange.lose(0)
        exchange.answer(1, changed(LOST, version=8))
        assert outcome_of(exchange) == (Outcome.STORED, AnswerLost)
        assert exchange.operation.result().versions == {"k": 8}

    def test_keys_are_decided_one_by_one(self, exchange: Exchange) -> None:
        same = [
            key
            for key in map(str, range(100))
            if exchange.session.replicas_of(key.encode()) == exchange.session.replicas_of(b"0")
        ][:4]
        exchange.change(*same, wanted=ADD)
        [_] = exchange.sent
        exchange.answer(0, changed(APPLIED, CONFLICT, FORGOTTEN, REJECTED, rejected=Busy("later")))
        exchange.wait()
        renewed, repeated = sorted(exchange.sent[1:], key=lambda send: send.correlation)
        again = exchange.request(exchange.sent.index(repeated))
        if not again.repeated:
            renewed, repeated = repeated, renewed
        assert codec.unpack_keys(exchange.request(exchange.sent.index(renewed)).keys) == [
            same[2].encode()
        ]
        assert codec.unpack_keys(exchange.request(exchange.sent.index(repeated)).keys) == [
            same[3].encode()
        ]
        for place in (1, 2):
            exchange.answer(place, changed(APPLIED))
        result = exchange.operation.result()
        assert (result.stored, result.unchanged) == (3, {same[1]: 5})

    @pytest.mark.parametrize("error", [UsageError("no such operation"), DiskFull("full")])
    def test_error_of_every_home_is_final(self, exchange: Exchange, error: DStashError) -> None:
        exchange.change("k")
        place = 0
        while not exchange.operation.done:
            exchange.answer(place, error)
            place += 1
        assert place == (1 if isinstance(error, UsageError) else 3)
        assert outcome_of(exchange) == (Outcome.FAILED, type(error))
        with pytest.raises(BatchError):
            exchange.operation.result().raise_for_failures()

    def test_change_without_an_answer_is_unknown(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.expire()
        assert outcome_of(exchange) == (Outcome.UNKNOWN, TimedOut)

    def test_change_that_no_home_could_serve_is_not_applied(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.answer(0, Unavailable("no quorum"))
        exchange.answer(1, Unavailable("no quorum"))
        exchange.answer(2, Unavailable("no quorum"))
        exchange.expire()
        assert outcome_of(exchange) == (Outcome.FAILED, Unavailable)

    def test_malformed_answer_leaves_the_outcome_unknown(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.answer(0, changed(APPLIED, APPLIED))
        with pytest.raises(TimedOut, match="sent 2 answers for 1 keys"):
            exchange.operation.result()


class TestTopology:
    def test_newer_topology_reroutes_the_request_with_its_id(self, exchange: Exchange) -> None:
        exchange.change("k")
        home = exchange.sent[0].peer
        others = [name for name in "abcd" if name != home]
        newer = cluster(8, others).encode()
        exchange.answer(0, StaleEpoch("your topology is older", topology=newer))
        first, second = exchange.request(0), exchange.request(1)
        assert exchange.sent[1].peer in others
        assert (first.caller, first.number) == (second.caller, second.number)
        assert second.repeated


class TestRequestIds:
    def test_callers_are_used_again_when_their_request_is_decided(self, exchange: Exchange) -> None:
        exchange.change("k")
        first = exchange.request()
        exchange.answer(0, changed(APPLIED))
        exchange.operation.result()
        exchange.change("k")
        second = exchange.request()
        assert first.caller == second.caller
        assert second.number > first.number

    def test_caller_of_an_unknown_request_is_not_used_again(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.expire()
        exchange.operation.result()
        exchange.change("k")
        assert exchange.request(0).caller != exchange.request(-1).caller

    def test_calls_that_overlap_have_different_callers(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.change("k")
        assert exchange.request(0).caller != exchange.request(1).caller

    def test_number_does_not_go_back_with_the_clock(self, exchange: Exchange) -> None:
        for place in range(2):
            exchange.change("k")
            exchange.answer(place, changed(APPLIED))
            exchange.operation.result()
            exchange.now -= 300
        assert exchange.request(0).caller == exchange.request(1).caller
        assert exchange.request(1).number > exchange.request(0).number

    def test_clock_far_in_the_future_gets_other_callers(self, exchange: Exchange) -> None:
        exchange.change("k")
        exchange.answer(0, changed(APPLIED))
        exchange.operation.result()
        exchange.now -= 3_600_000
        exchange.change("k")
        assert exchange.request(0).caller != exchange.request(1).caller

    def test_forked_child_gets_other_callers(self) -> None:
        exchange = Exchange()
        exchange.session.process = lambda: 1
        exchange.ids.give_back(exchange.ids.take())
        before = exchange.ids.take()
        exchange.ids.give_back(before)
        exchange.session.process = lambda: 2
        assert exchange.ids.take().name != before.name
