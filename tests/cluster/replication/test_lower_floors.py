"""Tests of the request to lower floors and horizons that are ahead of time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.cluster.replication.partitions import LOWERED_MARK
from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.topology import Topology
from dstash.errors import ChangeConflict, UsageError
from dstash.peer.background.maintenance import Pace
from dstash.store.record import partition_of
from dstash.version import Stamp, stamp_at
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import AdminRequest
from tests.harness.joined import Joined

HOUR = 3_600_000
PARTITION = partition_of(b"k")


def alive(names: str = "abc") -> dict[str, Announcement]:
    return {name: Announcement(name, "tcp://x:1", f"store-{name}", name, 1.0) for name in names}


def pass_time(joined: Joined) -> None:
    for _ in range(4):
        joined.now += 1000
        joined.settle()


def requested(joined: Joined) -> Topology:
    """Return the topology with the request in it, as a peer and its membership agent make it."""
    core = joined.peers["a"]
    frames = encode(Envelope(7, joined.topology.epoch, 0, AdminRequest("lower-floors", [])))
    core.receive(b"x", frames, joined.now)
    [pending] = core.admin_requests.take()
    request = pending.request
    return transitions.requested(joined.topology, alive(), request.action, [], 0, request.stamp)


@pytest.fixture
def joined() -> Joined:
    """Peers, one of which has a durable floor an hour ahead."""
    joined = Joined(pace=Pace(10**9, 10**9, 0))
    joined.put({"k": 1}, "all")
    pass_time(joined)
    ahead = stamp_at(joined.now + HOUR)
    local_partitions = joined.peers["c"].local_partitions
    local_partitions.floor = local_partitions.kept_floor = ahead
    joined.stores["c"].mark(*local_partitions.advance([PARTITION], ahead))
    joined.stores["c"].mark(b"floor", ahead.to_bytes(8, "big"))
    return joined


def highest(joined: Joined, peer: str) -> Stamp:
    local_partitions = joined.peers[peer].local_partitions
    return max(local_partitions.floor, local_partitions.newest_horizon, *local_partitions.horizons)


def test_floors_and_horizons_above_the_stamp_are_lowered_durably(joined: Joined) -> None:
    assert joined.peers["c"].health.status()["ahead_ms"] > HOUR // 2
    joined.put({"k": 2})
    assert joined.record("c", "k") != joined.record("a", "k")
    joined.topology = requested(joined)
    joined.install(joined.topology)
    joined.session.install(joined.topology.encode(), list("abc"))
    pass_time(joined)
    assert highest(joined, "c") <= stamp_at(joined.now)
    assert joined.peers["c"].health.status()["ahead_ms"] == 0
    assert joined.put({"k": 3}, "all").ok
    assert joined.record("c", "k") == joined.record("a", "k")
    joined.restart("c")
    pass_time(joined)
    assert highest(joined, "c") <= stamp_at(joined.now)


def test_lower_floors_request_is_executed_once(joined: Joined) -> None:
    joined.topology = requested(joined)
    joined.install(joined.topology)
    pass_time(joined)
    later = stamp_at(joined.now)
    joined.peers["c"].local_partitions.floor = later
    joined.install(joined.topology)
    pass_time(joined)
    assert joined.peers["c"].local_partitions.floor == later
    epoch = joined.topology.epoch.to_bytes(8, "big")
    assert [store.marks[LOWERED_MARK] for store in joined.stores.values()] == [epoch] * 3


def test_floors_below_the_stamp_are_kept(joined: Joined) -> None:
    before = stamp_at(joined.now - 5000)
    joined.peers["a"].local_partitions.advance([PARTITION], before)
    joined.topology = requested(joined)
    joined.install(joined.topology)
    pass_time(joined)
    assert joined.peers["a"].local_partitions.horizons[PARTITION] == before


def test_lower_floors_request_has_stamp_of_cluster_clock(joined: Joined) -> None:
    joined.offsets = {"a": HOUR}
    pass_time(joined)
    core = joined.peers["a"]
    frames = encode(Envelope(7, joined.topology.epoch, 0, AdminRequest("lower-floors", [])))
    core.receive(b"x", frames, joined.time_at("a"))
    [pending] = core.admin_requests.take()
    assert pending.request.stamp == stamp_at(joined.now)


def test_lower_floors_request_round_trip(joined: Joined) -> None:
    topology = requested(joined)
    assert Topology.decode(topology.encode()) == topology
    assert topology.ceiling_epoch == topology.epoch == joined.topology.epoch + 1


class TestRefused:
    def test_lower_floors_fails_while_a_member_is_down(self, joined: Joined) -> None:
        with pytest.raises(ChangeConflict, match="'c' is down"):
            transitions.lower_floors(joined.topology, alive("ab"), 1)

    def test_lower_floors_fails_while_a_member_is_streaming(self, joined: Joined) -> None:
        member = joined.topology.members[0]
        streaming = joined.topology.with_member(replace(member, synced=False))
        with pytest.raises(ChangeConflict, match="'a' is streaming"):
            transitions.lower_floors(streaming, alive(), 1)

    def test_lower_floors_fails_during_a_topology_change(self, joined: Joined) -> None:
        moving = transitions.remove(joined.topology, ["a"])
        with pytest.raises(ChangeConflict, match="a topology change is running"):
            transitions.lower_floors(moving, alive(), 1)

    def test_lower_floors_fails_when_peers_are_given(self, joined: Joined) -> None:
        with pytest.raises(UsageError):
            transitions.requested(joined.topology, alive(), "lower-floors", ["a"], 0, 1)
