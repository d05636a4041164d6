"""Registers on the joined cores of a cluster: operations, concurrent callers, lost homes."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import msgpack
import pytest

from dstash.cluster.topology.view import View
from dstash.errors import Busy, ClockSkew, LimitError, NotReady, ProtocolError, UsageError
from dstash.peer.admission.requests import Ticket
from dstash.version import stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Lookup, Page, Scan, Values
from dstash.wire.registers import (
    ANY,
    KEEP,
    MISSING,
    NEVER_EXPIRES,
    Amounts,
    Change,
    Settle,
)
from dstash.wire.registers import ChangeKind as Kind
from dstash.wire.registers import ChangeOutcome as Outcome
from dstash.wire.registers.consensus import Accept
from tests.harness.joined import Joined
from tests.harness.linearizability import Call, is_linearizable
from tests.harness.registers import Callers, Sent, blobs
from tests.harness.replay import contradiction

ONE, TWO = b"\x01", b"\x02"


@pytest.fixture
def joined() -> Joined:
    return Joined(registers=True)


@pytest.fixture
def callers(joined: Joined) -> Callers:
    return Callers(joined)


def counts(joined: Joined, home: str = "a") -> dict[str, int]:
    return dict(joined.peers[home].registers.coordinator.counts)


class TestOperations:
    def test_add_compare_and_delete_at_different_homes(self, callers: Callers) -> None:
        added = callers.run(callers.change(Kind.PUT, b"k", values=[ONE], expected=MISSING)).result
        assert added.outcome is Outcome.APPLIED
        again = callers.change(Kind.PUT, b"k", values=[TWO], expected=MISSING, home="b")
        assert callers.run(again).result[:2] == (Outcome.CONFLICT, added.version)
        changed = callers.change(Kind.PUT, b"k", values=[TWO], expected=added.version, home="b")
        version = callers.run(changed).result.version
        assert version > added.version
        found = callers.run(callers.settle(b"k", b"absent", home="c")).results
        assert [item[:3] for item in found] == [
            (Outcome.FOUND, version, TWO),
            (Outcome.ABSENT, 0, None),
        ]
        gone = callers.run(callers.change(Kind.DELETE, b"k", expected=version, home="c")).result
        assert gone.outcome is Outcome.APPLIED
        assert callers.run(callers.settle(b"k")).result.outcome is Outcome.ABSENT
        new = callers.run(callers.change(Kind.PUT, b"k", values=[ONE], expected=MISSING)).result
        assert new.version > gone.version, "tokens grow across a deletion"

    def test_each_key_of_a_request_is_decided_by_itself(self, callers: Callers) -> None:
        callers.run(callers.change(Kind.PUT, b"text", values=[b"\xa1x"]))
        callers.run(callers.change(Kind.PUT, b"full", values=[b"\x09"]))
        request = callers.change(
            Kind.INCREMENT, b"new", b"text", b"full", amounts=Amounts(1, 4, 0, 9)
        )
        new, text, full = callers.run(request).results
        assert (new.outcome, new.value) == (Outcome.APPLIED, b"\x05")
        assert (text.outcome, text.error) == (
            Outcome.REJECTED,
            (2, "the value is not an integer, so it cannot be incremented"),
        )
        assert (full.outcome, full.value) == (Outcome.UNCHANGED, None)

    def test_swap_and_pop_answer_the_value_before(self, callers: Callers) -> None:
        assert callers.run(callers.change(Kind.SWAP, b"k", values=[ONE])).result.value is None
        assert callers.run(callers.change(Kind.SWAP, b"k", values=[b"\xc0"])).result.value == ONE
        assert callers.run(callers.change(Kind.POP, b"k")).result.value == b"\xc0"
        assert callers.run(callers.change(Kind.POP, b"k")).result[:2] == (Outcome.UNCHANGED, 0)

    def test_expiry_is_written_before_it_is_seen(self, joined: Joined, callers: Callers) -> None:
        callers.run(callers.change(Kind.PUT, b"k", values=[ONE], ttl=1000))
        assert callers.run(callers.settle(b"k")).result.expiry == joined.now + 1000
        joined.now += 1400  # expired by the clock, but less than the skew ago
        assert callers.run(callers.settle(b"k", home="b")).result.outcome is Outcome.FOUND
        joined.now += 101
        assert callers.run(callers.settle(b"k", home="b")).result.outcome is Outcome.ABSENT
        joined.now -= 400
        assert callers.run(callers.settle(b"k", home="c")).result.outcome is Outcome.ABSENT

    def test_touch_keeps_the_version(self, joined: Joined, callers: Callers) -> None:
        put = callers.run(callers.change(Kind.PUT, b"k", values=[ONE], ttl=1000)).result
        touched = callers.run(callers.change(Kind.TOUCH, b"k", ttl=NEVER_EXPIRES)).result
        assert touched[:2] == (Outcome.APPLIED, put.version)
        joined.now += 1501
        joined.settle()
        assert callers.run(callers.settle(b"k")).result[:2] == (Outcome.FOUND, put.version)


def test_read_at_level_one_and_scan_have_values_without_headers(
    joined: Joined, callers: Callers
) -> None:
    callers.run(callers.change(Kind.PUT, b"k", values=[ONE], ttl=60_000))
    callers.run(callers.change(Kind.PUT, b"other", values=[TWO]))
    joined.settle()
    values = callers.run(callers.send("a", Lookup("@r", 1, blobs(b"k", b"other")))).answer
    assert isinstance(values, Values)
    assert codec.split_payloads(values.values) == [ONE, TWO]
    partitions = b"".join(n.to_bytes(2, "big") for n in range(4096))
    scan = callers.send("b", Scan("@r", b"", partitions, b"", 9, 9999))
    page = callers.run(scan).answer
    assert isinstance(page, Page)
    assert sorted(codec.split_payloads(page.values)) == [ONE, TWO]


class TestRounds:
    def test_reads_and_failed_conditions_of_equal_replicas_write_nothing(
        self, joined: Joined, callers: Callers
    ) -> None:
        callers.run(callers.change(Kind.PUT, b"k", values=[ONE]))
        before = {name: store.high_water for name, store in joined.stores.items()}
        for home in "abc":
            callers.run(callers.settle(b"k", home=home))
            add = callers.change(Kind.PUT, b"k", values=[TWO], expected=MISSING, home=home)
            assert callers.run(add).result.outcome is Outcome.CONFLICT
        assert {name: store.high_water for name, store in joined.stores.items()} == before

    def test_tenure_continues_without_preparing(self, joined: Joined, callers: Callers) -> None:
        for _ in range(5):
            callers.run(callers.change(Kind.INCREMENT, b"k"))
        assert counts(joined) == {"prepare:won": 1, "accept:won": 5}

    def test_operations_of_one_turn_share_an_accept_but_no_version(
        self, joined: Joined, callers: Callers
    ) -> None:
        callers.run(callers.change(Kind.INCREMENT, b"k"))
        sent = [
            callers.change(Kind.INCREMENT, b"k", caller=b"caller%02d" % number)
            for number in range(20)
        ]
        callers.run(*sent)
        assert sorted(each.result.value or b"" for each in sent) == [
            msgpack.packb(number) for number in range(2, 22)
        ]
        assert len({each.result.version for each in sent}) == 20
        assert counts(joined)["accept:won"] == 2

    def test_read_after_a_partial_accept_writes_it_to_a_quorum(
        self, joined: Joined, callers: Callers
    ) -> None:
        callers.run(callers.change(Kind.PUT, b"k", values=[ONE]))
        joined.mute |= {"b", "c"}
        lost = callers.change(Kind.PUT, b"k", values=[TWO], timeout=600)
        assert callers.run(lost).result.error[0] == 42, "its outcome is unknown"
        joined.mute.clear()
        seen = callers.run(callers.settle(b"k", home="b")).result.value
        joined.down.add("a")
        assert callers.run(callers.settle(b"k", home="b")).result.value == seen
        assert callers.run(callers.settle(b"k", home="c")).result.value == seen

    def test_home_without_quorum_answers_at_the_deadline(
        self, joined: Joined, callers: Callers
    ) -> None:
        joined.down |= {"b", "c"}
        began = joined.now
        refused = callers.run(callers.change(Kind.PUT, b"k", values=[ONE], timeout=1000)).result
        assert refused.outcome is Outcome.REJECTED
        assert refused.error[0] == 40, "no accept was sent"
        assert "1 of 3 replicas voted" in refused.error[1] or "0 of 3" in refused.error[1]
        assert joined.now - began <= 1010

    def test_operations_go_on_with_one_replica_down(self, joined: Joined, callers: Callers) -> None:
        joined.down.add("c")
        for number in range(1, 4):
            increment = callers.change(Kind.INCREMENT, b"k")
            assert callers.run(increment).result.value == msgpack.packb(number)
        assert joined.peers["a"].hints.waiting() == ["c"], "it gets what it has missed"

    def test_home_with_a_wrong_clock_serves(self, joined: Joined, callers: Callers) -> None:
        joined.offsets["a"] = 3_600_000
        joined.settle()
        for _ in range(3):
            joined.now += 1000
            joined.settle()
        put = callers.run(callers.change(Kind.PUT, b"k", values=[ONE]))
        assert put.result.outcome is Outcome.APPLIED
        assert put.result.version < stamp_at(joined.now + 1000)
        joined.down.add("a")
        assert callers.run(callers.settle(b"k", home="b")).result.value == ONE


class TestRequests:
    def test_repeated_request_is_applied_once(self, joined: Joined, callers: Callers) -> None:
        first = callers.run(callers.change(Kind.INCREMENT, b"k", number=stamp_at(joined.now, 7)))
        copy = {"number": stamp_at(joined.now, 7), "repeated": True}
        again = callers.run(callers.change(Kind.INCREMENT, b"k", home="b", **copy))
        assert again.result == first.result
        other = callers.run(callers.change(Kind.INCREMENT, b"k", caller=b"caller02", **copy))
        assert other.result.value == TWO, "another caller has used the same number"

    def test_duplicate_of_a_request_that_failed_is_not_applied(
        self, joined: Joined, callers: Callers
    ) -> None:
        delete = callers.change(Kind.DELETE, b"k")
        assert callers.run(delete).result.outcome is Outcome.UNCHANGED
        callers.run(callers.change(Kind.PUT, b"k", values=[ONE], caller=b"caller02"))
        frames = joined_frames(delete, joined)
        deliver_again(frames, joined)
        assert callers.run(callers.settle(b"k")).result.outcome is Outcome.FOUND

    def test_duplicate_of_a_request_that_was_refused_is_not_applied(
        self, joined: Joined, callers: Callers
    ) -> None:
        ahead = callers.change(Kind.PUT, b"k", values=[ONE], number=stamp_at(joined.now + 3000))
        assert isinstance(callers.run(ahead).error, ClockSkew)
        frames = joined_frames(ahead, joined)
        joined.now += 4000
        joined.settle()
        deliver_again(frames, joined)
        assert callers.run(callers.settle(b"k")).result.outcome is Outcome.ABSENT

    def test_refused_request_that_cannot_be_applied_is_not_remembered(
        self, joined: Joined, callers: Callers
    ) -> None:
        change = callers.change(Kind.PUT, b"k", values=[ONE], caller=b"c" * 100_000)
        assert isinstance(callers.run(change).error, ProtocolError)
        assert not joined.peers["a"].registers._home._refused

    def test_duplicate_of_a_waiting_request_is_not_refused(
        self, joined: Joined, callers: Callers
    ) -> None:
        joined.down |= {"b", "c"}
        waiting = callers.change(Kind.PUT, b"k", values=[ONE])
        frames = joined_frames(waiting, joined)
        core = joined.peers["a"]
        assert core.rejections.busy(b"client", frames, joined.now, "overloaded") == []
        joined.down.clear()
        assert callers.run(waiting).result.outcome is Outcome.APPLIED

    def test_duplicate_is_recognised_after_the_clock_of_the_home_was_set_back(
        self, joined: Joined, callers: Callers
    ) -> None:
        """Its answer was beyond its deadline, and the duplicate is before it again."""
        delete = callers.change(Kind.DELETE, b"k")
        assert callers.run(delete).result.outcome is Outcome.UNCHANGED
        frames = joined_frames(delete, joined)
        home = joined.peers["a"].registers._home
        for step in (20_000, -20_000):
            joined.now += step
            home._is_duplicate(Ticket(b"other", 1), (b"other", 1, b"caller02", 1), joined.now)
        callers.run(callers.change(Kind.PUT, b"k", values=[ONE], caller=b"caller02"))
        deliver_again(frames, joined)
        assert callers.run(callers.settle(b"k")).result.outcome is Outcome.FOUND

    def test_answer_that_is_too_large_is_not_kept(self, callers: Callers) -> None:
        callers.run(callers.change(Kind.PUT, b"k", values=[msgpack.packb("x" * 50)]))
        number = stamp_at(callers.joined.now, 500)
        callers.run(callers.change(Kind.POP, b"k", number=number))
        again = callers.run(callers.change(Kind.POP, b"k", number=number, repeated=True, home="b"))
        assert again.result.outcome is Outcome.ANSWER_LOST

    def test_number_from_the_future_is_refused(self, joined: Joined, callers: Callers) -> None:
        number = stamp_at(joined.now + 60_000)
        error = callers.run(callers.change(Kind.INCREMENT, b"k", number=number)).error
        assert isinstance(error, ClockSkew)
        assert error.details == {"ahead_ms": 60_000}

    @pytest.mark.parametrize(
        ("fields", "kind", "text"),
        [
            ({"index": "plain"}, UsageError, "its name must be '@' and at least one more"),
            ({"index": "@"}, UsageError, "index '@' has no registers"),
            ({"keys": blobs(b"k", b"k")}, UsageError, "a key appears twice"),
            ({"keys": blobs()}, LimitError, "has 0 registers; allowed are 1 to 1000"),
            ({"keys": blobs(*map(str.encode, map(str, range(1001))))}, LimitError, "1001 reg"),
            ({"operation": 6}, UsageError, "a touch needs a time to live"),
            ({"operation": 9}, ProtocolError, "unknown operation 9"),
            ({"operation": 5}, ProtocolError, "INCREMENT has 0 bytes of amounts"),
            ({"operation": 1}, ProtocolError, "PUT of 1 registers has 0 values"),
            ({"operation": 1, "payloads": blobs(b"\xc1")}, ProtocolError, "well-formed msgpack"),
            ({"caller": b"short"}, ProtocolError, "a caller has 8 bytes, not 5"),
            ({"expected": bytes(24)}, ProtocolError, "1 keys have 3 expected versions"),
            ({"ttl": 1 << 60}, LimitError, "longer than 100 years"),
        ],
    )
    def test_invalid_request_is_refused_with_one_line(
        self, joined: Joined, callers: Callers, fields: dict[str, Any], kind: type, text: str
    ) -> None:
        valid = Change(
            "@r",
            b"caller01",
            stamp_at(joined.now, 1),
            False,
            Kind.DELETE,
            KEEP,
            0,
            b"",
            b"",
            blobs(b"k"),
            blobs(),
        )
        error = callers.run(callers.send("a", replace(valid, **fields))).error
        assert isinstance(error, kind)
        assert text in str(error)
        assert joined.stores["a"].records == {}


class TestStates:
    def test_first_request_raises_the_feature_level(self) -> None:
        joined = Joined()
        callers = Callers(joined)
        assert isinstance(callers.run(callers.settle(b"k")).error, Busy)
        [step] = joined.peers["a"].take_proposals()
        changed = step(joined.topology)
        assert changed is not None
        joined.change(changed)
        joined.settle()
        assert callers.run(callers.settle(b"k")).result.outcome is Outcome.ABSENT

    def test_member_of_an_earlier_version_is_named(self) -> None:
        joined = Joined()
        old = replace(joined.topology.members[1], features="drop")
        joined.change(replace(joined.topology.with_member(old), epoch=6))
        callers = Callers(joined)
        error = callers.run(callers.settle(b"k")).error
        assert isinstance(error, UsageError)
        assert "b runs an earlier version" in str(error)

    def test_peer_whose_commits_are_never_synced_neither_votes_nor_proposes(self) -> None:
        joined = Joined(registers=True, is_durable=False)
        callers = Callers(joined)
        error = callers.run(callers.settle(b"k")).error
        assert isinstance(error, UsageError)
        assert 'need durability = "sync" or "interval"' in str(error)

    def test_unsynced_peer_neither_votes_nor_proposes(
        self, joined: Joined, callers: Callers
    ) -> None:
        lost = replace(joined.topology.members[0], synced=False)
        joined.topology = replace(joined.topology.with_member(lost), epoch=6)
        joined.install(joined.topology)
        assert isinstance(callers.run(callers.settle(b"k")).error, NotReady)
        joined.down.add("b")
        refused = callers.change(Kind.PUT, b"k", values=[ONE], home="c", timeout=500)
        assert callers.run(refused).result.error[0] == 40, "c alone is no quorum"

    def test_operations_that_wait_continue_in_a_new_epoch(
        self, joined: Joined, callers: Callers
    ) -> None:
        callers.run(callers.change(Kind.INCREMENT, b"k"))
        joined.mute |= {"b", "c"}
        sent = callers.change(Kind.INCREMENT, b"k", timeout=9000)
        joined.settle()
        joined.change(joined.topology.next())
        joined.mute.clear()
        assert callers.run(sent).result.value == TWO
        assert callers.run(callers.settle(b"k", home="c")).result.value == TWO

    def test_vote_of_an_ended_epoch_is_not_answered(self, joined: Joined) -> None:
        core = joined.peers["b"]
        accept = Accept(blobs(), blobs())
        core.receive(b"a:7", frames_of(accept, joined.topology.epoch), joined.now)
        commit = core.next_commit(joined.now)
        assert commit is not None
        commit.run(joined.stores["b"])
        core.install(replace_epoch(joined), joined.now)
        [reply] = core.committed(commit, joined.now)
        assert decode(reply.frames).message.code == 21  # type: ignore[attr-defined]


def replace_epoch(joined: Joined) -> Any:
    return View(joined.topology.next(), frozenset("abc"))


def frames_of(message: Any, epoch: int) -> list[bytes]:
    return encode(Envelope(7, epoch, 0, message))


def deliver_again(frames: list[bytes], joined: Joined) -> None:
    """Deliver a duplicate of a request to its home."""
    joined._answer_each("a", joined.peers["a"].receive(b"client", frames, joined.now))
    joined.settle()


def joined_frames(sent: Sent, joined: Joined) -> list[bytes]:
    return encode(Envelope(1, joined.topology.epoch, joined.now + 5000, sent.message))


class TestHistories:
    @pytest.mark.parametrize("seed", range(6))
    def test_history_of_concurrent_callers_is_linearizable(self, seed: int) -> None:
        history = History(seed)
        history.run()
        assert is_linearizable(history.calls)
        assert contradiction(history.calls) == ""
        assert sum(not call.is_unknown for call in history.calls) > 8


class History:
    """Callers of one register at three homes, while peers fall silent and lose connections."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._joined = Joined(registers=True)
        self._callers = Callers(self._joined)
        self._open: list[tuple[int, str, Any, Sent]] = []
        self.calls: list[Call] = []

    def run(self) -> None:
        """Call for some seconds."""
        rng, joined = self._random, self._joined
        for number in range(100):
            joined.mute = {name for name in "abc" if rng.random() < 0.08}
            joined.down = {name for name in "abc" if rng.random() < 0.03}
            if len(self._open) < 4:
                self._call(number)
            for _ in range(rng.randrange(1, 40)):
                joined._tick(rng.choice("abc"))
            if rng.random() < 0.5:
                joined.settle()
            joined.now += rng.choice((1, 5, 50))
            self._collect()
            if rng.random() < 0.02:
                joined.restart(rng.choice("abc"))
        joined.mute, joined.down = set(), set()
        for _ in range(600):
            joined.settle()
            joined.now += 10
            self._collect()
        for began, kind, argument, _ in self._open:
            self._note(began, kind, argument)

    def _call(self, number: int) -> None:
        rng, callers = self._random, self._callers
        kind = rng.choice(("read", "put", "add", "swap", "increment", "delete"))
        home, caller = rng.choice("abc"), b"%08d" % len(self.calls + self._open)
        fields: dict[str, Any] = {"home": home, "caller": caller, "timeout": 2000}
        argument: Any = None
        if kind == "read":
            sent = callers.settle(b"k", home=home)
        elif kind == "increment":
            argument = 1
            sent = callers.change(Kind.INCREMENT, b"k", **fields)
        elif kind == "delete":
            sent = callers.change(Kind.DELETE, b"k", **fields)
        else:
            argument = number
            operation = Kind.SWAP if kind == "swap" else Kind.PUT
            expected = MISSING if kind == "add" else ANY
            values = [msgpack.packb(number)]
            sent = callers.change(operation, b"k", values=values, expected=expected, **fields)
        self._open.append((self._joined.now, kind, argument, sent))

    def _collect(self) -> None:
        self._callers.collect()
        for entry in [entry for entry in self._open if entry[3].answer is not None]:
            began, kind, argument, sent = entry
            self._open.remove(entry)
            if isinstance(sent.message, Settle | Change) and hasattr(sent.answer, "outcomes"):
                self._note_result(began, kind, argument, sent)

    def _note_result(self, began: int, kind: str, argument: Any, sent: Sent) -> None:
        result = sent.result
        if result.outcome is Outcome.REJECTED:
            if result.error[0] == 42:
                self._note(began, kind, argument)
            return  # it was not applied
        value = msgpack.unpackb(result.value) if result.value is not None else None
        is_applied = result.outcome is Outcome.APPLIED
        answers = {
            "read": value,
            "put": None,
            "add": is_applied,
            "swap": value,
            "increment": value,
            "delete": is_applied,
        }
        version = result.version if is_applied else 0
        self.calls.append(Call(began, self._joined.now, kind, argument, answers[kind], version))

    def _note(self, began: int, kind: str, argument: Any) -> None:
        self.calls.append(Call(began, self._joined.now, kind, argument))
