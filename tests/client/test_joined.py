"""Tests of the client's operations against peer cores in memory, with unequal replicas."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from dstash.client.operations.batch_lookup import BatchLookup
from dstash.client.operations.writes import ApplyOperation
from dstash.client.routing import read_table
from dstash.client.session import LAGGING_MS, MISSED_MS
from dstash.cluster.topology.drop_steps import with_drop
from dstash.errors import BelowFloor, CorruptRecord, ProtocolError, TimedOut, Unavailable
from dstash.limits import PARTITIONS
from dstash.peer import reads
from dstash.store.record import (
    HEAD_BYTES,
    build_record,
    keyspace,
    open_record,
    partition_of,
)
from dstash.types import Level, Outcome
from dstash.version import pack, stamp_at, unpack, with_touch
from dstash.wire import codec
from dstash.wire.envelope import Envelope
from dstash.wire.keys import Key
from dstash.wire.messages import Apply, Fetch, Lookup, Put, Records
from dstash.wire.shapes import Frame
from tests.harness.joined import START, TYPES, Joined

LEVELS = ["one", "quorum", "all"]


@pytest.fixture
def joined() -> Joined:
    return Joined()


def kinds(joined: Joined) -> list[str]:
    return [type(envelope.message).__name__ for _, envelope in joined.asked]


@pytest.mark.parametrize("level", LEVELS)
def test_lookup_returns_put_value(joined: Joined, level: str) -> None:
    assert joined.put({"a": 1, "b": None}, level).stored == 2
    assert joined.lookup("a", "b", "c", level=level) == {"a": 1, "b": None}
    assert joined.delete("a", "c", level=level).deleted == 1
    assert joined.lookup("a", "b", "c", level=level) == {"b": None}


def test_quorum_read_requests_one_value_and_one_digest(joined: Joined) -> None:
    joined.put({"a": 1}, "all")
    joined.asked.clear()
    joined.lookup("a")
    assert sorted(envelope.message.want for _, envelope in joined.asked) == [6, 7]


@pytest.mark.parametrize(("number", "most"), [(200, 6), (3000, 12)])
def test_small_batch_at_quorum_asks_each_pair_of_replicas_once(number: int, most: int) -> None:
    joined = Joined()
    pairs: dict[Key, Any] = {f"k{place}": place for place in range(number)}
    joined.put(pairs)
    joined.asked.clear()
    assert joined.lookup(*pairs) == pairs
    assert set(kinds(joined)) == {"Lookup"}
    assert most // 2 < len(joined.asked) <= most


class TestDisagreement:
    def test_newest_record_wins_and_stale_replica_is_repaired_first(self, joined: Joined) -> None:
        joined.put({"k": "old"}, "all")
        joined.silent = {"c"}
        joined.put({"k": "new"})
        joined.silent = set()
        assert joined.lookup("k", level="all") == {"k": "new"}
        assert joined.record("c", "k") == joined.record("a", "k")
        assert "Apply" in kinds(joined)

    def test_replica_that_missed_a_key_is_repaired(self, joined: Joined) -> None:
        joined.put({"k": 1, "other": 2}, "all")
        joined.forget("b", "k")
        assert joined.lookup("k", "other", level="all") == {"k": 1, "other": 2}
        assert joined.record("b", "k") == joined.record("a", "k")

    def test_delete_missed_by_a_replica_stays_a_delete(self, joined: Joined) -> None:
        joined.put({"k": 1}, "all")
        joined.silent = {"a"}
        joined.delete("k")
        joined.silent = set()
        for level in ("quorum", "all"):
            assert joined.lookup("k", level=level) == {}
        assert open_record(joined.record("a", "k") or b"").is_tombstone

    def test_quorum_read_finds_a_write_that_level_one_misses(self) -> None:
        """As docs/consistency.md states: level one reads a single replica, which may be stale."""
        seen: dict[str, list[Any]] = {"one": [], "quorum": [], "scan": []}
        for missed in "abc":
            joined = Joined()
            joined.silent = {missed}
            joined.put({"k": 1})
            joined.silent = set()
            seen["one"].append(joined.lookup("k", level="one"))
            seen["scan"].append(joined.scan())
            seen["quorum"].append(joined.lookup("k", level="quorum"))
        assert {} in seen["one"]
        assert {} in seen["scan"]
        assert seen["quorum"] == [{"k": 1}] * 3

    def test_replica_that_missed_a_write_is_deprioritised_for_a_while(self) -> None:
        joined = Joined()
        keys = [f"k{number}" for number in range(30)]
        joined.put(dict.fromkeys(keys, 1), "all")
        joined.silent = {"c"}
        joined.put(dict.fromkeys(keys, 2))
        joined.silent = set()
        joined.session.heard("c")  # it was silent, and answers again

        def asked_c(after: int) -> list[str]:
            joined.now += after
            joined.asked.clear()
            assert all(joined.lookup(key) == {key: 2} for key in keys[:-1])
            return [type(request.message).__name__ for peer, request in joined.asked if peer == "c"]

        joined.lookup(keys[-1], level="all")  # c missed the write, or it is still in flight
        usual = read_table(joined.session.known_view(), Level.QUORUM, "", ())
        assert joined.session.read_targets(Level.QUORUM) == usual
        assert asked_c(MISSED_MS + 1)[-2:] == ["Fetch", "Apply"], "nothing after the first it lacks"
        assert asked_c(LAGGING_MS - 1) == []
        assert asked_c(1)[-2:] == ["Fetch", "Apply"], "it is tried again, and still lacks some"

    def test_recent_write_does_not_hide_that_a_replica_is_lagging(self) -> None:
        joined = Joined()
        replicas = joined.session.replicas_of
        new = next(
            key for key in map(str, range(100)) if replicas(key.encode()) == replicas(b"old")
        )
        joined.silent = {"c"}
        joined.put({"old": 1})
        joined.now += MISSED_MS + 1
        joined.put({new: 1})
        joined.silent = set()
        assert joined.lookup("old", new, level="all") == {"old": 1, new: 1}
        table = joined.session.read_targets(Level.QUORUM)
        assert not any("c" in targets for targets in table)

    @pytest.mark.parametrize("missed", "abc")
    def test_any_two_of_three_replicas_have_a_quorum_write(self, missed: str) -> None:
        joined = Joined()
        joined.silent = {missed}
        joined.put({"k": 1})
        joined.silent = set()
        for away in set("abc") - {missed}:
            joined.down = {away}
            assert joined.lookup("k") == {"k": 1}


class TestDrops:
    @pytest.mark.parametrize("avoided", "abc")
    def test_quorum_read_returns_nothing_that_one_replica_knows_to_be_dropped(
        self, avoided: str
    ) -> None:
        joined = Joined()
        joined.put({"k": "dropped"}, "all")
        joined.now += 10
        stamp = stamp_at(joined.now)
        changed = with_drop(joined.topology, "i", b"", stamp)
        # After the control plane was forked, two topologies may have one epoch.
        joined.install(replace(changed, epoch=joined.topology.epoch), "a", "b")
        joined.session.suspect(avoided, joined.now + 10**9)
        assert joined.lookup("k") == {}


class TestCorruptRecords:
    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("corrupt", "abc")
    def test_corrupt_record_is_read_from_another_replica_and_repaired(
        self, level: str, corrupt: str
    ) -> None:
        joined = Joined()
        joined.put({"k": 1, "other": 2}, "all")
        whole = joined.record(corrupt, "k")
        joined.corruption(corrupt, "k")
        assert joined.lookup("k", "other", level=level) == {"k": 1, "other": 2}
        if any(isinstance(envelope.message, Fetch) for _, envelope in joined.asked):
            joined.settle()
            assert joined.record(corrupt, "k") == whole
            corruption = joined.peers[corrupt].local_partitions.corruption
            assert (corruption.found, corruption.repaired, len(corruption)) == (1, 1, 0)

    def test_corrupt_record_does_not_revive_overwritten_value(self, joined: Joined) -> None:
        """One replica missed the write, and on another it is corrupt: only the third has it."""
        joined.put({"k": "old"}, "all")
        joined.silent = {"b"}
        joined.put({"k": "new"})
        joined.silent = set()
        for corrupt, level in (("a", "quorum"), ("a", "all"), ("c", "quorum")):
            whole = joined.record(corrupt, "k")
            joined.corruption(corrupt, "k")
            assert joined.lookup("k", level=level) == {"k": "new"}
            joined.stores[corrupt].records[joined.place("k")] = whole or b""

    def test_lookup_fails_with_too_few_sound_replicas(self, joined: Joined) -> None:
        joined.put({"k": 1}, "all")
        for peer in "ab":
            joined.corruption(peer, "k")
        with pytest.raises(CorruptRecord, match="'k'"):
            joined.lookup("k", level="all")

    def test_put_overwrites_corrupt_record(self, joined: Joined) -> None:
        joined.put({"k": 1}, "all")
        for peer in "abc":
            joined.corruption(peer, "k")
        assert joined.put({"k": 2}, "all").ok
        assert joined.lookup("k", level="all") == {"k": 2}

    def test_corrupt_record_is_not_repaired_from_replica_that_missed_the_write(
        self, joined: Joined
    ) -> None:
        """The corrupt record was acked here and on ``b``; the record on ``c`` is older."""
        joined.put({"k": "old"}, "all")
        joined.down = {"c"}
        joined.put({"k": "new"})
        joined.down = {"b"}
        joined.corruption("a", "k")
        lost = joined.record("a", "k")
        with pytest.raises((CorruptRecord, TimedOut, Unavailable)):
            joined.lookup("k")
        joined.settle()
        assert joined.record("a", "k") == lost
        joined.down = set()
        joined.now += 2000  # the next attempt follows after a pause
        joined.settle()
        assert joined.record("a", "k") == joined.record("b", "k")

    @pytest.mark.parametrize(("corrupt", "missed", "away"), list(itertools.permutations("abc")))
    def test_corrupt_record_does_not_vote_for_missing_key(
        self, corrupt: str, missed: str, away: str
    ) -> None:
        """With a request for the value and with a request for a digest, which looks the same."""
        joined = Joined()
        joined.put({"k": 1}, "all")
        joined.forget(missed, "k")
        joined.alter(corrupt, "k", lambda record: record[: HEAD_BYTES - 1])
        joined.down = {away}
        with pytest.raises((CorruptRecord, TimedOut, Unavailable)):
            joined.lookup("k")

    def test_corrupt_record_delays_page_until_repaired(self, joined: Joined) -> None:
        joined.put({str(number): number for number in range(50)}, "all")
        for peer in "abc":
            joined.corruption(peer, str("abc".index(peer)))
        assert joined.scan() == {str(number): number for number in range(50)}
        joined.settle()
        assert all(len(core.local_partitions.corruption) == 0 for core in joined.peers.values())

    def test_corrupt_record_with_tombstone_flag_does_not_count_as_delete(
        self, joined: Joined
    ) -> None:
        joined.put({"k": 1}, "all")
        for peer in "abc":
            whole = joined.record(peer, "k") or b""
            joined.alter(peer, "k", lambda record: record[:28] + b"\x01" + record[29:])
            for level in LEVELS:
                assert joined.exists("k", level=level) == {"k": True}
                joined.alter(peer, "k", lambda record: record[:28] + b"\x01" + record[29:])
            joined.stores[peer].records[joined.place("k")] = whole

    def test_corrupt_record_without_tombstone_flag_does_not_count_as_live(
        self, joined: Joined
    ) -> None:
        joined.put({"k": 1}, "all")
        joined.delete("k", level="all")
        for peer in "abc":
            for level in LEVELS:
                joined.alter(peer, "k", lambda record: record[:28] + b"\x00" + record[29:])
                assert joined.exists("k", level=level) == {}
                joined.settle()


class TestSuperseded:
    def test_write_with_slow_clock_is_not_lost(self, joined: Joined) -> None:
        ahead = pack(stamp_at(joined.now + 400), b"\xff" * 4)

        def stamp_ahead(peer: str, envelope: Any) -> Any:
            message = envelope.message
            if isinstance(message, Put):
                message = replace(message, version=ahead)
            return envelope._replace(message=message)

        joined.tamper = stamp_ahead
        joined.put({"k": "by a fast clock"}, "all")
        joined.tamper = lambda peer, envelope: envelope
        assert joined.put({"k": "mine", "other": 1}).stored == 2
        assert joined.lookup("k", "other", level="all") == {"k": "mine", "other": 1}
        version = open_record(joined.record("a", "k") or b"").version
        assert unpack(version)[0] > unpack(ahead)[0]

    def test_version_too_far_ahead_is_rejected_with_the_difference(self, joined: Joined) -> None:
        core = joined.peers["a"]
        joined.silent = {"b", "c"}
        replies = []

        def far_ahead(peer: str, envelope: Any) -> Any:
            message = replace(envelope.message, version=pack(stamp_at(joined.now + 2000), b"aaaa"))
            return envelope._replace(message=message)

        joined.tamper = far_ahead
        original = core.replies.encode

        def reply(*args: Any) -> Any:
            replies.append(args[1])
            return original(*args)

        core.replies.encode = reply  # type: ignore[method-assign]
        joined.put({"k": 1}, "one", timeout=100)
        assert "2000 ms ahead of the cluster's clock; allowed are 500 ms" in replies[0].text


class TestOutcomes:
    def test_write_that_reached_no_peer_is_failed(self, joined: Joined) -> None:
        joined.down = {"a", "b", "c"}
        result = joined.put({"k": 1})
        assert result.outcomes == {"k": Outcome.FAILED}
        assert isinstance(result.reasons[0], Unavailable)
        with pytest.raises(Unavailable, match=r"\(b: not connected\)"):
            joined.lookup("k")

    def test_write_without_answer_is_unknown(self, joined: Joined) -> None:
        joined.silent = {"a", "b", "c"}
        result = joined.put({"k": 1})
        assert result.outcomes == {"k": Outcome.UNKNOWN}
        assert isinstance(result.reasons[0], TimedOut)
        with pytest.raises((TimedOut, Unavailable), match="no answer"):
            joined.lookup("k")

    def test_write_with_too_few_acks_is_unknown(self, joined: Joined) -> None:
        joined.down = {"b", "c"}
        assert joined.put({"k": 1}).outcomes == {"k": Outcome.UNKNOWN}
        joined.down = set()
        assert joined.lookup("k") in ({}, {"k": 1})

    def test_write_refused_by_all_is_failed(self, joined: Joined) -> None:
        for core in joined.peers.values():
            core.health.stopping = True
        assert joined.put({"k": 1}).outcomes == {"k": Outcome.FAILED}

    def test_call_ends_at_its_deadline(self, joined: Joined) -> None:
        began = joined.now
        joined.silent = {"a", "b", "c"}
        joined.put({"k": 1}, timeout=700)
        assert joined.now == began + 700

    def test_invalid_item_fails_alone(self, joined: Joined) -> None:
        def spoil(peer: str, envelope: Any) -> Any:
            message = envelope.message
            if isinstance(message, Put):
                message = replace(
                    message, payloads=message.payloads.replace(b"\xa3bad", b"\xd9\xffbd")
                )
            return envelope._replace(message=message)

        joined.tamper = spoil
        result = joined.put({"k": 1, "spoilt": "bad", "l": 2})
        assert result.outcomes == {"spoilt": Outcome.FAILED}
        assert result.stored == 2
        assert joined.lookup("k", "spoilt", "l") == {"k": 1, "l": 2}


class TestFailover:
    @pytest.mark.parametrize("away", "abc")
    def test_calls_succeed_without_a_peer_that_is_down(self, away: str) -> None:
        joined = Joined()
        joined.down = {away}
        began = joined.now
        assert joined.put({"k": 1}).ok
        assert joined.lookup("k") == {"k": 1}
        assert joined.now == began

    @pytest.mark.parametrize("level", ["one", "quorum"])
    def test_read_asks_another_replica_when_one_is_silent(self, level: str) -> None:
        for quiet in "abc":
            joined = Joined()
            keys = {str(number): number for number in range(50)}
            joined.put(keys, "all")
            joined.silent = {quiet}
            began = joined.now
            assert joined.lookup(*keys, level=level) == keys
            assert joined.now - began <= 700
            later = joined.now
            assert joined.lookup(*keys, level=level) == keys
            assert joined.now == later  # from now on it is asked last

    def test_answer_that_is_too_large_is_requested_in_parts(self, joined: Joined) -> None:
        large = {f"large-{number}": bytes(1 << 20) for number in range(12)}
        assert joined.put(large, "all").ok
        assert joined.lookup(*large, level="all") == large
        for key in large:
            joined.forget("b", key)
        assert joined.lookup(*large, level="all") == large  # and whole records
        assert all(joined.record("b", key) for key in large)


class TestTopology:
    def test_call_with_old_epoch_continues_with_the_new_topology(self) -> None:
        joined = Joined("abcd")
        newer = replace(joined.topology, epoch=9)
        joined.install(newer)
        assert joined.put({"k": 1}).ok
        assert joined.session.epoch == 9
        assert joined.lookup("k") == {"k": 1}

    def test_many_chunks_are_rerouted_to_the_new_topology(self) -> None:
        joined = Joined("abcdef")
        keys = {str(number): number for number in range(300)}
        joined.put(keys, "all")
        joined.install(replace(joined.topology, epoch=9))
        assert joined.lookup(*keys) == keys

    def test_peer_with_older_topology_answers_once_it_has_caught_up(self, joined: Joined) -> None:
        newer = replace(joined.topology, epoch=9)
        joined.session.install(newer.encode(), ["a", "b", "c"])
        joined.install(newer, "a", "b")
        assert joined.put({"k": 1}).ok
        assert joined.peers["c"].topology_news.wants_refresh
        assert joined.record("c", "k") is None
        joined.install(newer, "c")
        joined._commit("c")
        assert joined.record("c", "k") is not None


def test_window_bounds_pending_requests() -> None:
    joined = Joined("abcdefgh")
    keys = {str(number): number for number in range(60_000)}
    joined.put(keys, "one")
    in_hand: list[int] = []

    def look(peer: str, envelope: Any) -> Any:
        in_hand.append(len(operation._pending))
        return envelope

    joined.tamper = look
    operation = BatchLookup(
        joined.session, joined.now + 5000, "i", list(keys), Level.ONE, TYPES.decode_values
    )
    assert len(joined.run(operation)) == len(keys)
    assert joined.now > START
    assert max(in_hand) < 48 + 8 * 8 * 8  # the window plus one part: a chunk per replica set
    assert not [
        request for request in joined.asked if isinstance(request[1].message, Apply | Fetch)
    ]
    assert any(isinstance(request[1].message, Lookup) for request in joined.asked)


@pytest.mark.parametrize("level", LEVELS)
def test_digests_of_large_records_are_sent_in_small_parts(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only heads are requested, but peers copy whole records, so requests must be small."""
    monkeypatch.setattr(reads, "HEADS_BYTES", 1000)
    joined = Joined()
    values = {f"k{number}": bytes(600) for number in range(9)}
    joined.put(values, "all")
    joined.asked.clear()
    assert joined.exists(*values, "none", level=level) == dict.fromkeys(values, True)
    assert joined.lookup(*values, "none", level=level) == values
    assert set(kinds(joined)) == {"Lookup"}, "replicas that agree are not asked for records"
    space = keyspace(b"i", frozenset(range(PARTITIONS)))
    horizons = [0] * PARTITIONS
    with joined.stores["a"].snapshot() as snapshot:
        answer = reads.look_up(
            snapshot, space, [key.encode() for key in values], 0, START, horizons
        )
    assert answer.answered == 2


def test_touch_that_is_too_late_does_not_count_as_stored(joined: Joined) -> None:
    joined.put({"k": 1})
    record = open_record(joined.record("a", "k") or b"")
    touched = record._replace(version=with_touch(record.version, stamp_at(joined.now)))
    for core in joined.peers.values():
        core.local_partitions.horizons[partition_of(b"k")] = stamp_at(joined.now + 1000)
    for peer in joined.peers:
        joined.forget(peer, "k")  # it was deleted and collected meanwhile
    content = build_record(b"i", b"k", touched)
    items: list[Any] = [("k", b"k", content)]
    deadline = joined.now + 5000
    result = joined.run(ApplyOperation(joined.session, deadline, "i", Level.QUORUM, items))
    assert result.outcomes == {"k": Outcome.FAILED}, "all replicas refused it"
    with pytest.raises(BelowFloor, match="too old"):
        result.raise_first()
    assert len([request for request in joined.asked if isinstance(request[1].message, Apply)]) == 3


def test_answer_with_too_many_records_is_rejected(joined: Joined) -> None:
    def add_one(envelope: Envelope) -> Envelope:
        if not isinstance(envelope.message, Records):
            return envelope
        records = codec.unpack_optional_blobs(envelope.message.records)
        frame = Frame(codec.pack_blobs([*records, None]))
        return envelope._replace(message=replace(envelope.message, records=frame))

    joined.put({"k": 1}, "all")
    joined.forget("b", "k")
    joined.tamper_answer = add_one
    with pytest.raises(ProtocolError, match="sent 2 records for 1 keys"):
        joined.lookup("k", level="all")
