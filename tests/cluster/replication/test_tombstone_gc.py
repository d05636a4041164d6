"""Horizons: agreed on by all, and made even again where only some were told."""

from __future__ import annotations

import pytest

from dstash.cluster.repair.antientropy import compare_with
from dstash.cluster.replication.partitions import BUSY_MS, HORIZONS_MARK
from dstash.cluster.replication.tasks import Merge
from dstash.cluster.replication.tombstone_gc import agree_all, reap_all, reconcile_horizons
from dstash.cluster.topology.view import View
from dstash.errors import DiskFull
from dstash.types import RecordFlag
from dstash.version import stamp_at
from dstash.wire.replication import FloorRequest, SetHorizon
from tests.cluster.virtual import NOW, PARTITION, Cluster

LAG_MS = 30_000
HORIZON = stamp_at(NOW - LAG_MS)


def deleted(*, joins: bool = False) -> Cluster:
    """Three peers that hold a tombstone, and know of it."""
    cluster = Cluster(joins=joins)
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW - 90_000), flags=RecordFlag.TOMBSTONE)
        cluster.run(peer, cluster.peers[peer].local_partitions.digest(PARTITION))
    return cluster


def horizons(cluster: Cluster) -> list[int]:
    return [cluster.peers[peer].local_partitions.horizons[PARTITION] for peer in "abc"]


def compare(cluster: Cluster) -> list[bool]:
    """Have all compare themselves, at rest; returns whether each has found another horizon."""
    for peer in "abc":
        for other in sorted(set("abc") - {peer}):
            cluster.now += BUSY_MS
            cluster.run(peer, compare_with(cluster.peers[peer], other))
    return [bool(cluster.peers[peer].local_partitions.unreconciled) for peer in "abc"]


def bury(cluster: Cluster) -> None:
    """Have all even their horizons, and drop the dead."""
    for peer in "abc":
        cluster.run(peer, reconcile_horizons(cluster.peers[peer]))
    for peer in "abc":
        cluster.run(peer, reap_all(cluster.peers[peer]))


def test_all_replicas_come_to_the_same_horizon() -> None:
    cluster = deleted()
    for peer in "abc":
        cluster.run(peer, agree_all(cluster.peers[peer], LAG_MS))
    assert horizons(cluster) == [HORIZON] * 3
    assert cluster.asked[SetHorizon] == 2, "the first replica begins, and nobody else"
    assert compare(cluster) == [False] * 3


@pytest.mark.parametrize("place", [1, 2])
def test_who_goes_away_in_the_middle_is_told_later(place: int) -> None:
    cluster = deleted()
    peers = cluster.view.readers[PARTITION]
    cluster.unanswered = {(peers[place], SetHorizon)}
    cluster.run(peers[0], agree_all(cluster.peers[peers[0]], LAG_MS))
    assert sorted(horizons(cluster)) == [0, HORIZON, HORIZON], "all others are told at once"
    cluster.unanswered.clear()
    for peer in "abc":
        cluster.run(peer, reap_all(cluster.peers[peer]))
    assert any(compare(cluster))
    bury(cluster)
    assert horizons(cluster) == [HORIZON] * 3
    assert compare(cluster) == [False] * 3


@pytest.mark.parametrize("ahead", ["a", "b", "c", "ab", "bc", "ac"])
def test_whoever_is_ahead_the_others_follow(ahead: str) -> None:
    cluster = deleted()
    cluster.bury(HORIZON, ahead)
    assert any(compare(cluster)), "one side of each pair begins, and finds it"
    assert sum(cluster.records(peer) for peer in "abc") == 3 - len(ahead)
    bury(cluster)
    assert horizons(cluster) == [HORIZON] * 3
    assert [cluster.records(peer) for peer in "abc"] == [0, 0, 0]
    assert compare(cluster) == [False] * 3


def test_horizons_that_make_no_difference_are_left_as_they_are() -> None:
    cluster = Cluster(joins=False)
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW - 1000))
    cluster.bury(HORIZON, "a")
    assert compare(cluster) == [False] * 3


def test_who_holds_something_else_up_to_a_horizon_does_not_take_it() -> None:
    cluster = deleted()
    cluster.bury(HORIZON, "a")
    for peer in "bc":  # a refuses it: it is the past
        cluster.write(peer, stamp_at(NOW - 80_000))
    assert any(compare(cluster))
    bury(cluster)
    assert horizons(cluster) == [HORIZON, 0, 0]
    assert [cluster.records(peer) for peer in "abc"] == [0, 1, 1]


@pytest.mark.parametrize("why", ["a change is under way", "one is away", "one has moved on"])
def test_an_uneven_horizon_waits_too(why: str) -> None:
    cluster = deleted(joins=why == "a change is under way")
    cluster.bury(HORIZON, "a")
    assert any(compare(cluster))
    if why == "one is away":
        cluster.view = View(cluster.view.topology, frozenset("ab"))
    if why == "one has moved on":
        cluster.unanswered = {(peer, FloorRequest) for peer in "abc"}
    bury(cluster)
    assert horizons(cluster) == [HORIZON, 0, 0]
    assert [cluster.records(peer) for peer in "abc"] == [0, 1, 1]


def test_horizon_that_cannot_be_stored_is_not_kept_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = deleted()
    peers = cluster.view.readers[PARTITION]
    full, commit = peers[1], cluster.commit

    def commit_if_room(peer: str, merge: Merge) -> None:
        if peer == full and HORIZONS_MARK in dict(merge.marks):
            raise DiskFull("no room")
        commit(peer, merge)

    monkeypatch.setattr(cluster, "commit", commit_if_room)
    cluster.run(peers[0], agree_all(cluster.peers[peers[0]], LAG_MS))
    assert cluster.peers[full].local_partitions.horizons[PARTITION] == 0
    assert sorted(horizons(cluster)) == [0, HORIZON, HORIZON]
    monkeypatch.undo()
    cluster.run(peers[0], reconcile_horizons(cluster.peers[peers[0]]))
    assert horizons(cluster) == [HORIZON] * 3
