"""Tests of the epoch barrier, which waits until no quorum serves the old replica sets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.epoch_barrier import await_barrier
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Ask, Pause
from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.errors import Unavailable
from dstash.store.memory import TwinStore
from dstash.wire.messages import TopologyReply


def switched(olds: str, joiner: str, replicas: int) -> View:
    """Members at the end of a change that adds a member."""
    members = tuple(Member(peer, f"tcp://{peer}:1", f"store-{peer}", peer) for peer in olds)
    before = Topology("test", "id", 1, replicas, formed=True, members=members)
    more = Announcement(joiner, f"tcp://{joiner}:1", f"store-{joiner}", joiner, 1.0)
    topology = transitions.add(before, [more])
    assert topology.change is not None
    change = replace(topology.change, switched=True)
    return View(replace(topology, change=change), frozenset(olds + joiner))


@pytest.mark.parametrize(
    ("olds", "joiner", "replicas", "asked"),
    [
        ("b", "a", 1, "b"),
        ("bc", "a", 1, "bc"),
        ("bc", "a", 2, "bc"),
        ("bcd", "a", 3, "bc"),
        ("a", "b", 1, ""),
    ],
)
@pytest.mark.parametrize("late", [0, 2])
def test_barrier_ends_when_no_quorum_serves_the_old_epoch(
    olds: str, joiner: str, replicas: int, asked: str, late: int
) -> None:
    view = switched(olds, joiner, replicas)
    me = min(olds + joiner)
    clock = ClusterClock(me, 500, lambda: 0, 0)
    replica = Replica(me, LocalPartitions(TwinStore()), lambda: view, lambda: 0, lambda: 0, clock)
    waiting = await_barrier(replica)
    moved_on, pauses = "", 0
    try:
        effect = next(waiting)
        for _ in range(50):
            if isinstance(effect, Pause):
                pauses += 1
                effect = waiting.send(None)
                continue
            assert isinstance(effect, Ask)
            if pauses < late:
                effect = waiting.throw(Unavailable(f"{effect.peer} is not connected"))
                continue
            moved_on += effect.peer
            effect = waiting.send(TopologyReply(view.topology.encode(), list(olds)))
    except StopIteration:
        pass
    else:
        pytest.fail("it must not wait")
    assert (moved_on, pauses) == (asked, late if asked else 0)
