"""Tests of the clocks by which a client stamps its writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dstash.client.operations.reconciliation import Reconciliation
from dstash.client.operations.writes import PutOperation
from dstash.client.session import Session
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.peer.background.maintenance import Pace
from dstash.peer.core import PeerCore
from dstash.store.record import build_record, open_record, partition_of
from dstash.types import Level
from dstash.version import newest_stamp, pack, stamp_at, stamp_milliseconds
from dstash.wire import codec
from dstash.wire.messages import Ping, Put
from tests.harness.joined import START, TYPES, Joined

NOW = 1_700_000_000_000


def topology(epoch: int, names: str) -> bytes:
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", name) for name in names)
    return Topology("c", "id", epoch, formed=True, members=members).encode()


def test_cluster_time_is_the_median_of_the_members() -> None:
    session = Session(lambda: NOW)
    session.install(topology(1, "abc"), [])
    for name, offset in zip("abc", (20_000, 5, -5), strict=True):
        session.learn_clock(name, NOW + offset, NOW, NOW)
    assert session.cluster_time() == NOW + 5


def test_clocks_of_former_members_do_not_count() -> None:
    session = Session(lambda: NOW)
    session.learn_clock("tcp://a:1", NOW + 20_000, NOW, NOW)  # a seed: the peer behind it
    session.install(topology(1, "abcd"), [])
    for name, offset in zip("abcd", (20_000, 20_000, 5, -5), strict=True):
        session.learn_clock(name, NOW + offset, NOW, NOW)
    session.install(topology(2, "cd"), [])
    assert session.cluster_time() == NOW - 5
    assert session.peer_time("c", NOW) == NOW + 5


HOUR = 3_600_000


def moment_of(record: bytes | None) -> int:
    """Return the stamp of a record, in milliseconds since the start."""
    assert record is not None
    return stamp_milliseconds(newest_stamp(open_record(record).version)) - START


def value_of(record: bytes | None) -> Any:
    assert record is not None
    [value] = TYPES.decode_array(codec.join_payloads([open_record(record).payload]))
    return value


def session_of(joined: Joined, **offsets: int) -> Session:
    """Return a new client with readings of clocks that are ahead by these offsets."""
    session = Session(lambda: joined.now)
    session.install(joined.topology.encode(), list(joined.peers))
    for peer, offset in offsets.items():
        session.learn_clock(peer, joined.now + offset, joined.now, joined.now)
    return session


def joined_at_rest() -> Joined:
    joined = Joined(pace=Pace(10**9, 10**9, 0))
    pass_time(joined)
    return joined


def pass_time(joined: Joined, milliseconds: int = 5000) -> None:
    """Advance the time of the peers, a second at a time."""
    for _ in range(milliseconds // 1000):
        joined.now += 1000
        joined.settle()


def cut_off_with_a_fast_clock(joined: Joined, peer: str, ahead: int) -> None:
    """Set the clock of a peer that reads no other clock, so that it trusts its own."""
    joined.offsets = {peer: ahead}
    joined.down = set(joined.peers) - {peer}
    joined.settle()
    joined.peers[
        peer
    ].local_partitions.freshness_confirmed = (
        True  # otherwise it serves no request until other peers answer
    )
    joined.down = set()


def kinds_asked(joined: Joined) -> list[type]:
    return [type(envelope.message) for _, envelope in joined.asked]


class TestClockReading:
    """A client reads the clocks of a quorum before it stamps its first write."""

    def test_write_reads_more_clocks_when_only_the_fast_peer_is_known(self) -> None:
        joined = joined_at_rest()
        joined.offsets = {"a": HOUR}
        joined.session = session_of(joined, a=HOUR)
        assert joined.put({"k": 1}).ok
        assert kinds_asked(joined) == [Ping] * 2 + [Put] * 3
        assert moment_of(joined.record("b", "k")) < 10_000
        joined.asked.clear()
        assert joined.put({"k": 2}).ok
        assert kinds_asked(joined) == [Put] * 3

    def test_expiry_is_computed_by_the_cluster_clock(self) -> None:
        joined = joined_at_rest()
        joined.offsets = {"a": HOUR}
        joined.session = session_of(joined, a=HOUR)
        items: list[Any] = [("k", b"k", TYPES.encode_many([1])[0])]
        deadline = joined.now + 5000
        joined.run(PutOperation(joined.session, deadline, "i", Level.QUORUM, items, 1000))
        record = joined.record("b", "k")
        assert record is not None
        assert open_record(record).expiry == joined.now + 1000

    def test_silent_peers_delay_the_clock_reading_briefly(self) -> None:
        joined = joined_at_rest()
        joined.silent = {"b", "c"}
        joined.session = session_of(joined, a=0)
        began = joined.now
        assert joined.put({"k": 1}, "one").ok
        assert joined.now - began <= 300

    def test_peers_that_are_down_do_not_delay_the_clock_reading(self) -> None:
        joined = joined_at_rest()
        joined.down = {"b", "c"}
        joined.session = session_of(joined, a=0)
        began = joined.now
        assert joined.put({"k": 1}, "one").ok
        assert joined.now == began

    def test_clock_reading_in_a_large_cluster_asks_five_members(self) -> None:
        joined = Joined("abcdefghi", pace=Pace(10**9, 10**9, 0))
        joined.session = session_of(joined, a=0)
        assert joined.put({"k": 1}).ok
        assert kinds_asked(joined).count(Ping) == 4


class TestFutureVersions:
    """A future version on one replica delays no write of a quorum, and is replaced."""

    @pytest.mark.parametrize("ahead", [3000, HOUR])
    def test_version_of_a_fast_peer_is_replaced(self, ahead: int) -> None:
        joined = joined_at_rest()
        cut_off_with_a_fast_clock(joined, "a", ahead)
        joined.session = session_of(joined, a=ahead, b=ahead)
        began = joined.now
        assert joined.put({"k": "first"}).ok
        assert joined.now - began < 200
        assert [value_of(joined.record(peer, "k")) for peer in "bc"] == ["first"] * 2
        assert [moment_of(joined.record(peer, "k")) for peer in "bc"] == [began - START] * 2
        assert joined.put({"k": "second"}, "all").ok
        assert joined.now - began < 2000
        assert [value_of(joined.record(peer, "k")) for peer in "abc"] == ["second"] * 3
        assert moment_of(joined.record("a", "k")) < began - START + 2000

    @pytest.mark.parametrize("write", ["put", "delete"])
    def test_batch_that_needs_a_replica_with_future_records_succeeds(self, write: str) -> None:
        joined = Joined("ab", pace=Pace(10**9, 10**9, 0))
        pass_time(joined)
        joined.session = session_of(joined, a=0, b=0)
        keys = [f"k{number}" for number in range(600)]
        assert joined.put(dict.fromkeys(keys, "old")).ok
        cut_off_with_a_fast_clock(joined, "b", HOUR)
        joined.down = {"a"}
        joined.session = session_of(joined, a=HOUR, b=HOUR)
        for key in keys:  # each gets a version of its own
            assert joined.put({key: "future"}, "one").ok
        joined.down, joined.offsets = set(), {}
        joined.settle()
        joined.session = session_of(joined, a=0, b=0)
        began = joined.now
        changed = joined.delete(*keys) if write == "delete" else joined.put(dict.fromkeys(keys, 1))
        assert changed.ok
        assert joined.now - began < 2000
        moments = {moment_of(joined.record(peer, key)) for peer in "ab" for key in keys}
        assert moments == {joined.now - START}

    def test_old_clock_readings_do_not_outvote_peers_that_reject(self) -> None:
        joined = Joined("abcde", pace=Pace(10**9, 10**9, 0))
        pass_time(joined)
        joined.session = session_of(joined, **dict.fromkeys("abcde", HOUR))  # out of date
        joined.now += 10_000
        began = joined.now
        assert joined.put({"k": 1}, timeout=2000).ok
        assert joined.now - began < 200

    def test_delete_with_version_of_a_fast_peer_is_replaced(self) -> None:
        joined = joined_at_rest()
        joined.put({"k": 1})
        cut_off_with_a_fast_clock(joined, "a", HOUR)
        joined.session = session_of(joined, a=HOUR, b=HOUR)
        assert joined.delete("k", level="all").ok
        assert len({joined.record(peer, "k") for peer in "abc"}) == 1

    @pytest.mark.parametrize("level", ["quorum", "all"])
    def test_quorum_reads_are_monotonic(self, level: str) -> None:
        joined = joined_at_rest()
        pass_time(joined)
        joined.put({"k": "old"})
        joined.alter("a", "k", lambda record: at(joined, record, joined.now + HOUR, "future"))
        for avoided in "abcabc":
            joined.session = session_of(joined, a=0, b=0, c=0)
            joined.session.suspect(avoided, joined.now + 10**9)
            assert joined.lookup("k", level=level) == {"k": "old"}

    def test_record_that_a_higher_record_may_have_replaced_is_read(self) -> None:
        """It was acked by two replicas; one of them has accepted a higher record since then."""
        joined = joined_at_rest()
        pass_time(joined)
        joined.put({"k": "old"})
        joined.alter("a", "k", lambda record: at(joined, record, joined.now + HOUR, "acked"))
        joined.alter("b", "k", lambda record: at(joined, record, joined.now + 2 * HOUR, "higher"))
        for avoided in "abcabc":
            joined.session = session_of(joined, a=0, b=0, c=0)
            joined.session.suspect(avoided, joined.now + 10**9)
            assert joined.lookup("k") == {"k": "acked"}

    @pytest.mark.parametrize("is_waived", [False, True])
    def test_record_that_a_lost_store_may_have_held_is_read(self, is_waived: bool) -> None:
        joined = joined_at_rest()
        pass_time(joined)
        joined.put({"k": "old"})
        joined.alter("a", "k", lambda record: at(joined, record, joined.now + HOUR, "future"))
        lost = replace(joined.topology.members[1], synced=False)
        if is_waived:
            lost = replace(lost, waived=lost.store_id)
        members = (joined.topology.members[0], lost, joined.topology.members[2])
        joined.topology = replace(joined.topology, epoch=6, members=members)
        joined.down = {"b"}
        joined.install(joined.topology)
        joined.session = session_of(joined, a=0, c=0)
        assert joined.lookup("k") == {"k": "old" if is_waived else "future"}

    def test_record_that_a_corrupt_record_may_have_been_is_read(self) -> None:
        joined = joined_at_rest()
        pass_time(joined)
        joined.put({"k": "old"})
        joined.alter("a", "k", lambda record: at(joined, record, joined.now + HOUR, "future"))
        joined.corruption("b", "k")
        joined.session = session_of(joined, a=0, b=0, c=0)
        assert joined.lookup("k") == {"k": "future"}

    def test_record_is_excluded_by_one_view_while_another_thread_installs_the_next(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        joined = joined_at_rest()
        pass_time(joined)
        joined.put({"k": "old"})
        joined.alter("a", "k", lambda record: at(joined, record, joined.now + HOUR, "future"))
        joined.session = session_of(joined, a=0, b=0, c=0)
        first, second, third = joined.topology.members
        members = (first, second, replace(third, id="d"))
        session, known = joined.session, joined.session.known_view()
        later = View(replace(joined.topology, epoch=known.epoch + 1, members=members))
        withdraw, views = Reconciliation._withdraw, [known]

        def known_view() -> View:
            views.append(later)
            return views[-2]

        def withdraw_meanwhile(chunk: Reconciliation, place: int, record: bytes) -> bool:
            with monkeypatch.context() as patch:
                patch.setattr(session, "known_view", known_view)
                return withdraw(chunk, place, record)

        monkeypatch.setattr(Reconciliation, "_withdraw", withdraw_meanwhile)
        assert joined.lookup("k", level="all") == {"k": "old"}
        assert views == [known, later]

    def test_put_replaces_record_from_the_future(self) -> None:
        joined = joined_at_rest()
        pass_time(joined)
        joined.put({"k": "old"})
        joined.alter("a", "k", lambda record: at(joined, record, joined.now + HOUR, "future"))
        assert joined.put({"k": "new"}, "all").ok
        assert [value_of(joined.record(peer, "k")) for peer in "abc"] == ["new"] * 3

    def test_future_record_of_a_quorum_is_read(self) -> None:
        joined = joined_at_rest()
        pass_time(joined)
        joined.put({"k": "old"})
        for peer in "ab":
            joined.alter(peer, "k", lambda record: at(joined, record, joined.now + HOUR, "now"))
            joined.stores[peer].high_water = stamp_at(joined.now + HOUR)
        pass_time(joined)
        for avoided in "abcabc":
            joined.session = session_of(joined, a=0, b=0, c=0)
            joined.session.suspect(avoided, joined.now + 10**9)
            assert joined.lookup("k") == {"k": "now"}

    def test_record_of_a_quorum_is_read_from_a_replica_that_does_not_know_the_quorum(self) -> None:
        joined = joined_at_rest()
        pass_time(joined)
        joined.put({"k": "old"})
        present = stamp_at(joined.now + HOUR)
        for peer, other in ("ac", "ca"):
            joined.alter(peer, "k", lambda record: at(joined, record, joined.now + HOUR, "now"))
            joined.stores[peer].high_water = present
            clock = joined.peers[peer].clock
            clock.note_present(other, present, clock.asks_present())
        for avoided in "abcabc":
            joined.session = session_of(joined, a=0, b=0, c=0)
            joined.session.suspect(avoided, joined.now + 10**9)
            assert joined.lookup("k") == {"k": "now"}


def at(joined: Joined, record: bytes, moment: int, value: Any) -> bytes:
    """Return a record with another stamp and another value."""
    version = pack(stamp_at(moment), b"oops")
    payload = TYPES.encode_many([value])[0]
    changed = open_record(record)._replace(version=version, payload=payload)
    return build_record(b"i", b"k", changed)


class TestAfterWrongClocks:
    """Clocks of two or of all peers were far ahead and were corrected: writes succeed at once."""

    @pytest.mark.parametrize("fast", ["ab", "abc"])
    @pytest.mark.parametrize("ahead", [HOUR, 10 * 365 * 24 * HOUR])
    def test_writes_succeed_after_clocks_are_corrected(self, fast: str, ahead: int) -> None:
        joined = Joined(pace=Pace(10**9, 5000, 100))
        joined.put({"k": 0})
        joined.delete("gone")
        joined.offsets = dict.fromkeys(fast, ahead)
        joined.session = session_of(joined)
        pass_time(joined, 2000)
        assert joined.put({"k": "ahead"}).ok
        assert moment_of(joined.record("a", "k")) > ahead
        for core in joined.peers.values():
            joined_digests(core)
        pass_time(joined, 12_000)
        joined.offsets = {}
        pass_time(joined)
        joined.session = session_of(joined)
        for number, keys in enumerate((["k"], ["new"], ["k", "gone", "other"], ["k"])):
            began = joined.now
            assert joined.put(dict.fromkeys(keys, number), timeout=2000).ok
            assert joined.now - began < 500
            assert joined.lookup(*keys) == dict.fromkeys(keys, number)
        assert joined.delete("k").ok
        assert joined.lookup("k") == {}

    def test_write_is_not_stamped_past_a_stamp_of_one_replica(self) -> None:
        joined = joined_at_rest()
        for peer, ahead in (("a", 10 * HOUR), ("b", HOUR)):
            local_partitions = joined.peers[peer].local_partitions
            local_partitions.floor = local_partitions.kept_floor = stamp_at(joined.now + ahead)
        pass_time(joined)
        began = joined.now
        assert joined.put({"k": 1}, timeout=2000).ok
        assert joined.now - began < 500
        assert HOUR < moment_of(joined.record("c", "k")) < 2 * HOUR

    def test_writes_succeed_after_client_restart(self) -> None:
        joined = joined_at_rest()
        joined.offsets = dict.fromkeys("abc", HOUR)
        joined.session = session_of(joined)
        pass_time(joined, 3000)
        assert joined.put({"k": "ahead"}, "all").ok
        joined.offsets = {}
        for peer in "abc":
            joined.restart(peer)
        pass_time(joined)
        joined.session = session_of(joined)
        assert joined.put({"k": 1}, "all", timeout=2000).ok
        assert joined.lookup("k", level="all") == {"k": 1}


def joined_digests(core: PeerCore) -> None:
    """Let a peer find the partitions that have expirable records."""
    for partition in {partition_of(b"gone"), partition_of(b"k")}:
        core.scheduler.spawn("walk", core.local_partitions.digests.scrub(partition))
