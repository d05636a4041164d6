"""Peers with a wrong clock: accepted stamps, promises, and reports."""

from __future__ import annotations

from unittest import mock

import pytest
import structlog

from dstash.client.operations.base import Operation
from dstash.client.session import Send
from dstash.cluster.replication.digests.digests import Digests
from dstash.cluster.replication.partitions import FLOOR_MARK
from dstash.errors import BelowFloor, ClockSkew, NotReady, ProtocolError
from dstash.peer.background.maintenance import Pace
from dstash.store.record import partition_of
from dstash.version import Stamp, pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Error, Ping, Put, Stored
from dstash.wire.replication import ClockReply, ClockRequest, DigestsReply, FloorRequest
from dstash.wire.shapes import Frame, Message
from tests.harness.joined import START, Joined

HOUR = 3_600_000


def joined_with(**offsets: int) -> Joined:
    """Return three peers with these clock offsets, which have read each other's clocks."""
    joined = Joined(pace=Pace(10**9, 10**9, 0))
    joined.offsets = offsets
    pass_time(joined)
    return joined


def pass_time(joined: Joined, milliseconds: int = 4000) -> None:
    """Advance the time of the peers, a second at a time."""
    for _ in range(milliseconds // 1000):
        joined.now += 1000
        joined.settle()


def ask(joined: Joined, peer: str, message: Message) -> Message:
    """Return the answer of a peer to a message."""
    envelope = Envelope(7, joined.topology.epoch, 0, message)
    core = joined.peers[peer]
    replies = core.receive(b"x", encode(envelope), joined.time_at(peer))
    for _ in range(20):
        ticked, _ = core.tick(joined.time_at(peer))
        replies += ticked
        while (commit := core.next_commit(joined.time_at(peer))) is not None:
            commit.run(joined.stores[peer])
            replies += core.committed(commit, joined.time_at(peer))
    [answer] = [decode(reply.frames).message for reply in replies if reply.to == b"x"]
    return answer


def put_at(joined: Joined, peer: str, moment: int) -> Message:
    """Put a key on one peer with a version of this time."""
    blobs = Frame(codec.pack_blobs([b"\x01"]))
    keys = Frame(codec.pack_blobs([b"k"]))
    return ask(joined, peer, Put("i", pack(stamp_at(moment), b"abcd"), 0, keys, blobs))


def error_of(message: Message) -> Exception:
    assert isinstance(message, Error), message
    return message.error()


def floor(joined: Joined, peer: str, stamp: Stamp) -> Message:
    return ask(joined, peer, FloorRequest(b"\0\1", stamp))


def test_fast_peer_refuses_the_stamps_that_others_refuse() -> None:
    joined = joined_with(a=HOUR)
    for peer in "abc":
        assert isinstance(error_of(put_at(joined, peer, joined.now + 600)), ClockSkew)
        assert put_at(joined, peer, joined.now + 400) == Stored([])


def test_slow_peer_accepts_the_stamps_that_others_accept() -> None:
    joined = joined_with(a=-HOUR)
    for peer in "abc":
        assert put_at(joined, peer, joined.now) == Stored([])


def test_isolated_peer_uses_its_own_clock() -> None:
    joined = Joined(pace=Pace(10**9, 10**9, 0))
    joined.offsets = {"a": HOUR}
    joined.down = {"b", "c"}
    joined.restart("a")
    pass_time(joined)
    joined.peers[
        "a"
    ].local_partitions.freshness_confirmed = True  # else it serves nothing before others answer
    assert put_at(joined, "a", joined.now + HOUR) == Stored([])
    assert isinstance(error_of(floor(joined, "a", stamp_at(joined.now))), NotReady)
    joined.down = set()
    pass_time(joined)
    assert isinstance(error_of(put_at(joined, "a", joined.now + HOUR)), ClockSkew)


def test_wrong_clock_is_reported_until_corrected() -> None:
    joined = joined_with()
    core = joined.peers["a"]
    assert core.health.status()["clock_offset_ms"] == 0
    assert core.health.why_not_ready() is None
    with structlog.testing.capture_logs() as logs:
        joined.offsets = {"a": HOUR}
        pass_time(joined)
        assert core.health.status()["clock_offset_ms"] == HOUR
        assert (
            core.health.why_not_ready()
            == "the clock is 3600000 ms ahead of the cluster's; set it by NTP"
        )
        assert joined.peers["b"].health.why_not_ready() is None
        joined.offsets = {"a": -2000}
        pass_time(joined)
        assert (
            core.health.why_not_ready()
            == "the clock is 2000 ms behind the cluster's; set it by NTP"
        )
        joined.offsets = {}
        pass_time(joined)
        assert core.health.why_not_ready() is None
    events = [log["event"] for log in logs if "clock" in log["event"]]
    assert len(events) == 2, events
    assert events[1] == "the clock is right again"


def test_replies_carry_the_peers_own_clock() -> None:
    joined = joined_with(a=HOUR)
    reply = ask(joined, "a", ClockRequest())
    assert isinstance(reply, ClockReply)
    assert reply.clock == joined.time_at("a")
    frames = encode(Envelope(1, 0, 0, Ping()))
    [pong] = joined.peers["a"].receive(b"x", frames, joined.time_at("a"))
    assert decode(pong.frames).moment == joined.time_at("a")


class TestPromises:
    """Promises are made only for a present that a majority confirms, and are durable."""

    def test_fast_peer_makes_no_promise_for_its_own_time(self) -> None:
        joined = joined_with(a=HOUR)
        assert isinstance(error_of(floor(joined, "a", stamp_at(joined.now + HOUR))), ProtocolError)
        assert isinstance(floor(joined, "a", stamp_at(joined.now)), DigestsReply)

    def test_fast_peer_proposes_no_horizon_of_its_own_time(self) -> None:
        joined = Joined(pace=Pace(10**9, 5000, 0))
        joined.delete("k")
        joined.offsets = {"a": HOUR, "b": 0}
        with mock.patch.object(Digests, "gains_from", lambda _, number, stamp: number < 8):
            pass_time(joined, 12_000)
        assert all(core.local_partitions.newest_horizon for core in joined.peers.values())
        for core in joined.peers.values():
            assert max(
                core.local_partitions.newest_horizon, core.local_partitions.floor
            ) <= stamp_at(joined.now)

    def test_start_with_fast_clock_causes_no_outage(self) -> None:
        joined = joined_with()
        joined.offsets = {"a": HOUR}
        joined.restart("a")
        pass_time(joined, 2000)
        joined.offsets = {}
        for _ in range(2):
            assert put_at(joined, "a", joined.now) == Stored([])
            joined.restart("a")
            pass_time(joined, 2000)

    def test_store_without_floor_learns_time_of_other_peers(self) -> None:
        joined = joined_with()
        joined.stores["a"].marks.pop(FLOOR_MARK, None)
        joined.offsets = {"a": HOUR}
        joined.restart("a")
        started = joined.now
        joined.settle()
        pass_time(joined, 1000)
        # Its earlier promises are unknown, but none was later than now.
        assert isinstance(error_of(put_at(joined, "a", started)), BelowFloor)
        assert put_at(joined, "a", started + 1000) == Stored([])

    @pytest.mark.parametrize("clock", [-HOUR, 0, HOUR])
    def test_promise_survives_restart_with_any_clock(self, clock: int) -> None:
        joined = joined_with()
        promised = joined.now
        assert isinstance(floor(joined, "a", stamp_at(promised)), DigestsReply)
        joined.offsets = {"a": clock}
        joined.restart("a")
        pass_time(joined, 2000)
        assert isinstance(error_of(put_at(joined, "a", promised)), BelowFloor)
        assert put_at(joined, "a", promised + 1) == Stored([])

    def test_promise_is_durable_before_its_reply(self) -> None:
        joined = joined_with()
        core = joined.peers["a"]
        stamp = stamp_at(joined.now)
        frames = encode(Envelope(7, joined.topology.epoch, 0, FloorRequest(b"\0\1", stamp)))
        assert core.receive(b"x", frames, joined.now) == []
        for _ in range(20):
            assert core.tick(joined.now)[0] == []  # it waits for the commit
        commit = core.next_commit(joined.now)
        assert commit is not None
        commit.run(joined.stores["a"])
        core.committed(commit, joined.now)
        assert joined.stores["a"].marks[FLOOR_MARK] == stamp.to_bytes(8, "big")
        assert any(core.tick(joined.now)[0] for _ in range(20))


class TestAfterWrongClocksOfMajority:
    """The stamp that a majority holds is the present."""

    @pytest.mark.parametrize("fast", ["ab", "abc"])
    @pytest.mark.parametrize("ahead", [HOUR, 10 * 365 * 24 * HOUR])
    def test_stamps_past_confirmed_present_are_accepted(self, fast: str, ahead: int) -> None:
        joined = joined_with(**dict.fromkeys(fast, ahead))
        moment = joined.now + ahead
        for peer in fast:
            assert put_at(joined, peer, moment) == Stored([])
        joined.offsets = {}
        pass_time(joined)
        for peer in "abc":
            assert put_at(joined, peer, moment + 1) == Stored([])
            assert joined.peers[peer].health.why_not_ready() is None
            assert joined.peers[peer].health.status()["ahead_ms"] > ahead // 2
        assert isinstance(error_of(put_at(joined, "a", moment + 1000)), ClockSkew)

    def test_peer_without_present_asks_at_once(self) -> None:
        joined = joined_with(a=HOUR, b=HOUR)
        joined.offsets = {}
        pass_time(joined, 2000)
        moment = joined.now + HOUR
        for peer in "ab":  # they accepted it while their clocks were wrong
            joined.stores[peer].high_water = stamp_at(moment)
        assert isinstance(error_of(put_at(joined, "c", moment + 1)), ClockSkew)
        joined.now += 60
        joined.settle()
        assert put_at(joined, "c", moment + 1) == Stored([])

    def test_stamp_held_by_one_of_three_is_not_the_present(self) -> None:
        joined = joined_with()
        joined.stores["a"].high_water = stamp_at(joined.now + HOUR)
        pass_time(joined)
        for peer in "abc":
            assert isinstance(error_of(put_at(joined, peer, joined.now + HOUR)), ClockSkew)
        assert joined.peers["a"].health.status()["ahead_ms"] > HOUR // 2
        assert joined.peers["b"].health.status()["ahead_ms"] == 0


class Slow(Joined):
    """Peers that read client messages late, while horizons advance."""

    delay = 250

    def _deliver(self, operation: Operation, send: Send) -> list[Send]:
        for _ in range(self.delay // 50):
            self.now += 50
            self.settle()
        return super()._deliver(operation, send)


class TestShortGrace:
    """Writes succeed although the grace is shorter than their duration."""

    @pytest.mark.parametrize("lag", [0, 100, 500])
    def test_write_slower_than_the_grace_succeeds(self, lag: int) -> None:
        joined = Slow(pace=Pace(10**9, 200, lag))
        joined.put({"k": 1}, timeout=20_000)
        assert joined.delete("k").ok
        for core in joined.peers.values():
            core.scheduler.spawn("walk", core.local_partitions.digests.scrub(partition_of(b"k")))
        joined.settle()
        for number in range(5):
            result = joined.put({"other": number}, timeout=5000)
            assert result.ok, result.reasons
        assert all(core.local_partitions.newest_horizon for core in joined.peers.values())

    def test_write_delayed_by_the_disk_is_not_refused(self) -> None:
        joined = joined_with()
        core = joined.peers["a"]
        blobs = Frame(codec.pack_blobs([b"\x01"]))
        put = Put("i", pack(stamp_at(joined.now), b"abcd"), 0, blobs, blobs)
        core.receive(b"x", encode(Envelope(1, joined.topology.epoch, 0, put)), joined.now)
        stamp = stamp_at(joined.now)
        question = encode(Envelope(2, joined.topology.epoch, 0, FloorRequest(b"\0\1", stamp)))
        core.receive(b"y", question, joined.now)
        for _ in range(5):
            core.tick(joined.now)
        commit = core.next_commit(joined.now)
        assert commit is not None
        commit.run(joined.stores["a"])
        [stored] = core.committed(commit, joined.now)
        assert decode(stored.frames).message == Stored([])

    def test_floors_follow_closely_again_after_slow_writes(self) -> None:
        joined = joined_with()
        assert isinstance(floor(joined, "a", stamp_at(joined.now)), DigestsReply)
        assert isinstance(error_of(put_at(joined, "a", joined.now - 2000)), BelowFloor)
        refusal = error_of(floor(joined, "a", stamp_at(joined.now - 1000)))
        assert isinstance(refusal, ProtocolError)
        assert "1000 ms later than this peer may promise" in str(refusal)
        pass_time(joined, 61_000)
        assert isinstance(floor(joined, "a", stamp_at(joined.now - 100)), DigestsReply)


def test_peer_is_its_own_quorum_with_one_replica() -> None:
    joined = Joined(replicas=1, pace=Pace(10**9, 10**9, 0))
    joined.stores["a"].high_water = stamp_at(joined.now + HOUR)
    pass_time(joined)
    assert joined.peers["a"].clock.confirmed() == stamp_at(START + 1000 + HOUR)
    assert joined.peers["b"].clock.confirmed() == 0
