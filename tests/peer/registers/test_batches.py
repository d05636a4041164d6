"""Requests for many registers: their rounds run together, with the outcome of rounds one by one."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import msgpack
import pytest

from dstash.limits import MAX_VALUE_BYTES, PARTITIONS
from dstash.store.register.ballot import Promise, pack_promise
from dstash.version import stamp_at
from dstash.wire import codec
from dstash.wire.envelope import decode
from dstash.wire.registers import ANY, MISSING, Amounts, Change
from dstash.wire.registers import ChangeKind as Kind
from dstash.wire.registers import ChangeOutcome as Outcome
from dstash.wire.registers.consensus import Accept, Prepare
from tests.harness.joined import Joined
from tests.harness.linearizability import Call, is_linearizable
from tests.harness.registers import Callers, Sent
from tests.harness.replay import contradiction

KEYS = [b"k%02d" % number for number in range(30)]
ONES = [b"\x01"] * len(KEYS)
TWOS = [b"\x02"] * len(KEYS)


class Watched(Joined):
    """Joined cores that count the requests for votes, by voter."""

    def __init__(self) -> None:
        super().__init__(registers=True)
        self.requests: Counter[tuple[str, str, int]] = Counter()

    def _tick(self, name: str) -> bool:
        core = self.peers[name]
        tick = core.tick

        def noting(now: int) -> Any:
            replies, outgoing = tick(now)
            for request in outgoing:
                message = decode(request.frames).message
                if isinstance(message, Prepare | Accept):
                    count = len(codec.unpack_blobs(message.keys))
                    kind = type(message).__name__
                    if isinstance(message, Prepare) and not message.round:
                        kind = "Ask"
                    self.requests[request.peer, kind, count] += 1
            return replies, outgoing

        core.tick = noting  # type: ignore[method-assign]
        try:
            return super()._tick(name)
        finally:
            core.tick = tick  # type: ignore[method-assign]


@pytest.fixture
def joined() -> Watched:
    return Watched()


@pytest.fixture
def callers(joined: Watched) -> Callers:
    return Callers(joined)


def counts(joined: Joined, home: str = "a") -> dict[str, int]:
    return dict(joined.peers[home].registers.coordinator.counts)


def outcomes(sent: Sent) -> set[Outcome]:
    return {result.outcome for result in sent.results}


def storage_keys(joined: Joined) -> dict[bytes, bytes]:
    """Return the storage keys of the registers on the disks, by key."""
    return {storage_key[5:]: storage_key for storage_key in joined.stores["a"].records}


class TestRounds:
    def test_puts_of_new_keys_need_one_message_for_each_voter_and_phase(
        self, joined: Watched, callers: Callers
    ) -> None:
        sent = callers.run(callers.change(Kind.PUT, *KEYS, values=ONES))
        assert outcomes(sent) == {Outcome.APPLIED}
        assert len({result.version for result in sent.results}) == 1
        assert joined.requests == {
            ("b", "Prepare", 30): 1,
            ("c", "Prepare", 30): 1,
            ("b", "Accept", 30): 1,
            ("c", "Accept", 30): 1,
        }
        assert counts(joined) == {"prepare:won": 30, "accept:won": 30}
        found = callers.run(callers.settle(*KEYS, home="b")).results
        assert {result.value for result in found} == {b"\x01"}
        assert not any(store.promises for store in joined.stores.values())

    def test_adds_write_only_the_keys_that_are_absent(
        self, joined: Watched, callers: Callers
    ) -> None:
        callers.run(callers.change(Kind.PUT, *KEYS[:20], values=ONES[:20]))
        joined.now += 10
        added = callers.run(callers.change(Kind.PUT, *KEYS, values=TWOS, expected=MISSING))
        assert [result.outcome for result in added.results] == (
            [Outcome.CONFLICT] * 20 + [Outcome.APPLIED] * 10
        )
        new = {key: count for key, count in joined.requests.items() if key[2] == 10}
        assert new == {(voter, kind, 10): 1 for voter in "bc" for kind in ("Prepare", "Accept")}
        assert [kind for _, kind, count in joined.requests if count == 20].count("Ask") == 1
        found = callers.run(callers.settle(*KEYS)).results
        assert [result.value for result in found] == [b"\x01"] * 20 + [b"\x02"] * 10

    def test_reads_and_failed_conditions_write_nothing(
        self, joined: Watched, callers: Callers
    ) -> None:
        callers.run(callers.change(Kind.PUT, *KEYS, values=ONES))
        before = {name: store.high_water for name, store in joined.stores.items()}
        joined.now += 10
        for home in "abc":
            assert outcomes(callers.run(callers.settle(*KEYS, home=home))) == {Outcome.FOUND}
            add = callers.change(Kind.PUT, *KEYS, values=TWOS, expected=MISSING, home=home)
            assert outcomes(callers.run(add)) == {Outcome.CONFLICT}
        assert {name: store.high_water for name, store in joined.stores.items()} == before

    def test_each_kind_of_change_of_present_and_absent_registers(
        self, joined: Watched, callers: Callers
    ) -> None:
        callers.run(callers.change(Kind.PUT, *KEYS[:20], values=ONES[:20]))
        steps: list[tuple[Kind, dict[str, Any], list[bytes | None]]] = [
            (Kind.INCREMENT, {"amounts": Amounts(2, 4)}, [b"\x03"] * 20 + [b"\x06"] * 10),
            (Kind.SWAP, {"values": TWOS}, [b"\x03"] * 20 + [b"\x06"] * 10),
            (Kind.POP, {}, TWOS),  # type: ignore[list-item]
            (Kind.POP, {}, [None] * 30),
            (Kind.SWAP, {"values": ONES}, [None] * 30),
        ]
        versions = [0] * len(KEYS)
        for number, (kind, fields, answers) in enumerate(steps):
            joined.now += 10
            results = callers.run(callers.change(kind, *KEYS, home="abc"[number % 3], **fields))
            assert [result.value for result in results.results] == answers
            if kind is not Kind.POP or answers[0] is not None:
                news = [result.version for result in results.results]
                assert all(new > old for new, old in zip(news, versions, strict=True))
                versions = news

    def test_value_that_is_too_large_fails_alone(self, joined: Watched, callers: Callers) -> None:
        large = msgpack.packb(bytes(MAX_VALUE_BYTES - 6))
        results = callers.run(callers.change(Kind.PUT, *KEYS[:4], values=[large, *ONES[:3]]))
        assert [result.outcome for result in results.results] == [
            Outcome.REJECTED,
            *[Outcome.APPLIED] * 3,
        ]

    def test_tombstone_that_the_horizon_covers_counts_as_absent(
        self, joined: Watched, callers: Callers
    ) -> None:
        callers.run(callers.change(Kind.PUT, *KEYS, values=ONES))
        joined.now += 10
        callers.run(callers.change(Kind.DELETE, *KEYS))
        horizon = stamp_at(joined.now + 5)
        for peer in joined.peers.values():
            for partition in range(PARTITIONS):
                peer.local_partitions.horizons[partition] = horizon
        joined.now += 10
        added = callers.run(callers.change(Kind.PUT, *KEYS, values=TWOS, expected=MISSING))
        assert outcomes(added) == {Outcome.APPLIED}
        assert min(result.version for result in added.results) > horizon

    def test_single_add_of_an_absent_key_prepares_at_once(
        self, joined: Watched, callers: Callers
    ) -> None:
        for _ in range(2):
            callers.run(callers.change(Kind.PUT, KEYS[0], values=ONES[:1], expected=MISSING))
            joined.now += 10
        assert [kind for _, kind, _ in joined.requests].count("Ask") == 2, "the second only asks"
        assert counts(joined)["prepare:won"] == counts(joined)["accept:won"] == 1

    def test_home_that_has_missed_a_register_does_not_add_it_again(
        self, joined: Watched, callers: Callers
    ) -> None:
        joined.mute.add("a")
        callers.run(callers.change(Kind.PUT, *KEYS, values=ONES, home="b"))
        joined.mute.clear()
        joined.now += 10
        single = callers.change(Kind.PUT, KEYS[0], values=TWOS[:1], expected=MISSING)
        assert callers.run(single).result.outcome is Outcome.CONFLICT
        added = callers.run(callers.change(Kind.PUT, *KEYS, values=TWOS, expected=MISSING))
        assert outcomes(added) == {Outcome.CONFLICT}
        assert {result.value for result in callers.run(callers.settle(*KEYS)).results} == {b"\x01"}

    @pytest.mark.parametrize("state", ["mute", "down"])
    def test_read_asks_the_third_voter_if_the_second_does_not_answer(
        self, joined: Watched, callers: Callers, state: str
    ) -> None:
        callers.run(callers.change(Kind.PUT, *KEYS, values=ONES))
        for voter in "bc":
            getattr(joined, state).add(voter)
            began = joined.now
            results = callers.run(callers.settle(*KEYS)).results
            assert {result.value for result in results} == {b"\x01"}
            assert joined.now - began <= (260 if state == "mute" else 5)
            getattr(joined, state).clear()
            joined.now += 1000


class TestRegistersThatLeave:
    def test_key_with_a_later_promise_is_decided_by_itself(
        self, joined: Watched, callers: Callers
    ) -> None:
        callers.run(callers.change(Kind.PUT, *KEYS, values=ONES))
        joined.now += 10
        storage_key = storage_keys(joined)[KEYS[3]]
        later = pack_promise(storage_key, Promise(joined.now + 1, b"else"))
        for name in "bc":
            joined.stores[name].promises[storage_key] = later
        sent = callers.run(callers.change(Kind.PUT, *KEYS, values=TWOS))
        assert outcomes(sent) == {Outcome.APPLIED}
        assert joined.requests["b", "Accept", 29] == 1
        assert joined.requests["b", "Prepare", 1] == 1
        assert {result.value for result in callers.run(callers.settle(*KEYS)).results} == {b"\x02"}

    def test_key_that_one_voter_has_missed_is_decided_by_itself(
        self, joined: Watched, callers: Callers
    ) -> None:
        callers.run(callers.change(Kind.PUT, *KEYS, values=ONES))
        joined.now += 10
        joined.mute.add("c")
        callers.run(callers.change(Kind.PUT, KEYS[5], values=TWOS[:1]))
        joined.mute.clear()
        joined.down.add("b")
        joined.now += 10
        results = callers.run(callers.settle(*KEYS)).results
        assert [result.value for result in results] == [
            b"\x02" if key == KEYS[5] else b"\x01" for key in KEYS
        ]
        assert counts(joined)["accept:won"] == 30 + 1 + 1, "the read has written it to a quorum"

    def test_key_with_an_operation_that_waits_is_not_part_of_a_batch(
        self, joined: Watched, callers: Callers
    ) -> None:
        one = [callers.change(Kind.INCREMENT, key, caller=b"another1") for key in KEYS[:3]]
        many = callers.change(Kind.INCREMENT, *KEYS)
        after = [callers.change(Kind.INCREMENT, key, caller=b"another2") for key in KEYS[:6]]
        callers.run(*one, many, *after)
        assert [each.result.value for each in one] == [b"\x01"] * 3
        assert [result.value for result in many.results] == [b"\x02"] * 3 + [b"\x01"] * 27
        assert [each.result.value for each in after] == [b"\x03"] * 3 + [b"\x02"] * 3
        assert joined.requests["b", "Accept", 27] == 1

    def test_keys_with_a_tenure_join_a_batch(self, joined: Watched, callers: Callers) -> None:
        callers.run(callers.change(Kind.INCREMENT, KEYS[0]))
        joined.now += 10
        sent = callers.run(callers.change(Kind.INCREMENT, *KEYS))
        assert [result.value for result in sent.results] == [b"\x02"] + [b"\x01"] * 29
        assert joined.requests["b", "Accept", 30] == 1

    def test_batches_of_two_homes_on_the_same_keys_apply_each_once(
        self, joined: Watched, callers: Callers
    ) -> None:
        sent = [
            callers.change(Kind.INCREMENT, *KEYS, home=home, caller=b"caller-" + home.encode())
            for home in "abc"
        ]
        callers.run(*sent)
        values = [sorted(each.results[place].value or b"" for each in sent) for place in range(30)]
        assert values == [[b"\x01", b"\x02", b"\x03"]] * 30


class TestSilence:
    def test_one_voter_down_gets_what_it_has_missed(
        self, joined: Watched, callers: Callers
    ) -> None:
        joined.down.add("c")
        sent = callers.run(callers.change(Kind.PUT, *KEYS, values=ONES))
        assert outcomes(sent) == {Outcome.APPLIED}
        assert joined.peers["a"].hints.waiting() == ["c"]
        assert counts(joined) == {"prepare:won": 30, "accept:won": 30}

    def test_silent_voter_delays_a_round_by_the_wait_for_its_promise(
        self, joined: Watched, callers: Callers
    ) -> None:
        joined.mute.add("c")
        began = joined.now
        assert outcomes(callers.run(callers.change(Kind.PUT, *KEYS, values=ONES))) == {
            Outcome.APPLIED
        }
        assert joined.now - began < 300

    def test_round_without_quorum_is_unavailable_at_the_deadline(
        self, joined: Watched, callers: Callers
    ) -> None:
        joined.down |= {"b", "c"}
        sent = callers.run(callers.change(Kind.PUT, *KEYS, values=ONES, timeout=3000))
        [(code, text)] = {result.error for result in sent.results}
        assert (code, text[:44]) == (40, "no quorum in time: 0 of 3 replicas voted, 0 "[:44])
        assert not joined.stores["a"].promises, "a home promises only what others have promised"
        assert joined.peers["a"].registers.describe()["waiting"] == 0
        joined.down.clear()
        again = callers.change(Kind.INCREMENT, *KEYS[:3])
        assert {result.value for result in callers.run(again).results} == {b"\x01"}

    def test_accept_without_answers_is_unknown_at_the_deadline_and_applied_once(
        self, joined: Watched, callers: Callers
    ) -> None:
        number = stamp_at(joined.now, 99)
        sent = callers.change(Kind.INCREMENT, *KEYS, number=number, timeout=1000)
        joined._tick("a")
        joined._commit("b")
        joined._commit("c")  # both have promised the round
        joined.mute |= {"b", "c"}
        callers.run(sent)
        assert {result.error[0] for result in sent.results} == {42}
        assert joined.requests["b", "Accept", 30] > 1, "it was sent again"
        joined.mute.clear()
        joined.now += 10
        again = callers.change(Kind.INCREMENT, *KEYS, number=number, repeated=True, home="b")
        assert {result.value for result in callers.run(again).results} == {b"\x01"}

    def test_lost_round_is_repeated_as_a_whole(self, joined: Watched, callers: Callers) -> None:
        joined.mute |= {"b", "c"}
        sent = callers.change(Kind.INCREMENT, *KEYS, timeout=9000)
        joined.settle()
        joined.now += 600
        joined.settle()
        joined.mute.clear()
        callers.run(sent)
        assert {result.value for result in sent.results} == {b"\x01"}
        assert joined.requests["b", "Prepare", 30] == 2
        assert joined.requests["b", "Accept", 30] == 1

    def test_batch_continues_in_a_new_epoch(self, joined: Watched, callers: Callers) -> None:
        joined.mute |= {"b", "c"}
        sent = callers.change(Kind.INCREMENT, *KEYS, timeout=9000)
        joined.settle()
        joined.change(joined.topology.next())
        joined.mute.clear()
        joined.now += 1
        assert {result.value for result in callers.run(sent).results} == {b"\x01"}


def test_duplicate_of_a_batch_gets_the_same_answer(joined: Watched, callers: Callers) -> None:
    sent = callers.change(Kind.INCREMENT, *KEYS)
    message = sent.message
    assert isinstance(message, Change)
    copies = callers.send("a", message, copies=3)
    assert callers.run(sent).results == callers.run(copies).results
    assert {result.value for result in sent.results} == {b"\x01"}


def test_batch_continues_above_versions_of_a_clock_that_was_ahead(
    joined: Watched, callers: Callers
) -> None:
    first = callers.run(callers.change(Kind.PUT, *KEYS, values=ONES)).results
    joined.now -= 300
    joined.settle()
    change = callers.change(Kind.PUT, *KEYS, values=TWOS, caller=b"another1")
    sent = callers.run(change).results
    assert {result.outcome for result in sent} == {Outcome.APPLIED}
    assert all(new.version > old.version for new, old in zip(sent, first, strict=True))


class History:
    """Callers of some registers, together and apart, while peers fall silent and are restarted."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._joined = Joined(registers=True)
        self._callers = Callers(self._joined)
        self._open: list[tuple[int, str, list[bytes], list[Any], Sent]] = []
        self._count = 0
        self.calls: dict[bytes, list[Call]] = {key: [] for key in KEYS[:5]}

    def run(self) -> None:
        """Call for some seconds."""
        rng, joined = self._random, self._joined
        for _ in range(60):
            joined.mute = {name for name in "abc" if rng.random() < 0.1}
            joined.down = {name for name in "abc" if rng.random() < 0.05}
            if len(self._open) < 4:
                self._call()
            for _ in range(rng.randrange(1, 30)):
                joined._tick(rng.choice("abc"))
            if rng.random() < 0.5:
                joined.settle()
            joined.now += rng.choice((1, 5, 50, 120))
            self._collect()
            if rng.random() < 0.03:
                joined.restart(rng.choice("abc"))
            if rng.random() < 0.03:
                joined.change(joined.topology.next())
        joined.mute, joined.down = set(), set()
        while self._open and self._count < 1000:
            self._count += 1
            joined.settle()
            joined.now += 10
            self._collect()
        for began, kind, keys, arguments, _ in self._open:
            for key, argument in zip(keys, arguments, strict=True):
                self.calls[key].append(Call(began, joined.now, kind, argument))

    def _call(self) -> None:
        rng, callers = self._random, self._callers
        kind = rng.choice(("read", "put", "add", "swap", "increment", "delete"))
        keys = KEYS[:5] if rng.random() < 0.7 else [rng.choice(KEYS[:5])]
        self._count += 1
        arguments: list[Any] = [None] * len(keys)
        caller = b"%08d" % self._count
        fields: dict[str, Any] = {"home": rng.choice("abc"), "caller": caller, "timeout": 2000}
        if kind == "read":
            sent = callers.settle(*keys, home=fields["home"])
        elif kind == "increment":
            arguments = [1] * len(keys)
            sent = callers.change(Kind.INCREMENT, *keys, **fields)
        elif kind == "delete":
            sent = callers.change(Kind.DELETE, *keys, **fields)
        else:
            arguments = [self._count * 10 + place for place in range(len(keys))]
            values = list(map(msgpack.packb, arguments))
            operation = Kind.SWAP if kind == "swap" else Kind.PUT
            expected = MISSING if kind == "add" else ANY
            sent = callers.change(operation, *keys, values=values, expected=expected, **fields)
        self._open.append((self._joined.now, kind, keys, arguments, sent))

    def _collect(self) -> None:
        self._callers.collect()
        for entry in [entry for entry in self._open if entry[4].answer is not None]:
            began, kind, keys, arguments, sent = entry
            self._open.remove(entry)
            if hasattr(sent.answer, "outcomes"):
                for key, argument, result in zip(keys, arguments, sent.results, strict=True):
                    self._note(began, kind, key, argument, result)

    def _note(self, began: int, kind: str, key: bytes, argument: Any, result: Any) -> None:
        if result.outcome is Outcome.REJECTED:
            if result.error[0] == 42:
                self.calls[key].append(Call(began, self._joined.now, kind, argument))
            return  # it was not applied
        value = msgpack.unpackb(result.value) if result.value is not None else None
        is_applied = result.outcome is Outcome.APPLIED
        answer = {"put": None, "add": is_applied, "delete": is_applied}.get(kind, value)
        version = result.version if is_applied else 0
        self.calls[key].append(Call(began, self._joined.now, kind, argument, answer, version))


@pytest.mark.parametrize("seed", range(5))
def test_history_of_concurrent_batches_is_linearizable(seed: int) -> None:
    history = History(seed)
    history.run()
    for key, calls in history.calls.items():
        assert is_linearizable(calls), key
        assert contradiction(calls) == "", key
    assert sum(not call.is_unknown for calls in history.calls.values() for call in calls) > 40
