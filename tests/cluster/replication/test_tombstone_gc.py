"""Tests of tombstone GC: agreement on horizons, and their reconciliation."""

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
    """Three peers with a tombstone that they have registered."""
    cluster = Cluster(joins=joins)
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW - 90_000), flags=RecordFlag.TOMBSTONE)
        cluster.run(peer, cluster.peers[peer].local_partitions.digests.of(PARTITION))
    return cluster


def horizons(cluster: Cluster) -> list[int]:
    return [cluster.peers[peer].local_partitions.horizons[PARTITION] for peer in "abc"]


def compare(cluster: Cluster) -> list[bool]:
    """Compare all replicas at rest; return whether each found a different horizon."""
    for peer in "abc":
        for other in sorted(set("abc") - {peer}):
            cluster.now += BUSY_MS
            cluster.run(peer, compare_with(cluster.peers[peer], other))
    return [bool(cluster.peers[peer].local_partitions.unreconciled) for peer in "abc"]


def reconcile_and_reap(cluster: Cluster) -> None:
    """Reconcile all horizons, and drop tombstones."""
    for peer in "abc":
        cluster.run(peer, reconcile_horizons(cluster.peers[peer]))
    for peer in "abc":
        cluster.run(peer, reap_all(cluster.peers[peer]))


def test_all_replicas_come_to_the_same_horizon() -> None:
    cluster = deleted()
    for peer in "abc":
        cluster.run(peer, agree_all(cluster.peers[peer], LAG_MS))
    assert horizons(cluster) == [HORIZON] * 3
    assert cluster.asked[SetHorizon] == 2, "only the first replica starts"
    assert compare(cluster) == [False] * 3


@pytest.mark.parametrize("place", [1, 2])
def test_replica_that_fails_during_agreement_gets_the_horizon_later(place: int) -> None:
    cluster = deleted()
    peers = cluster.view.readers[PARTITION]
    cluster.unanswered = {(peers[place], SetHorizon)}
    cluster.run(peers[0], agree_all(cluster.peers[peers[0]], LAG_MS))
    assert sorted(horizons(cluster)) == [0, HORIZON, HORIZON], "all other replicas get it at once"
    cluster.unanswered.clear()
    for peer in "abc":
        cluster.run(peer, reap_all(cluster.peers[peer]))
    assert any(compare(cluster))
    reconcile_and_reap(cluster)
    assert horizons(cluster) == [HORIZON] * 3
    assert compare(cluster) == [False] * 3


@pytest.mark.parametrize("ahead", ["a", "b", "c", "ab", "bc", "ac"])
def test_replicas_adopt_the_latest_horizon(ahead: str) -> None:
    cluster = deleted()
    cluster.set_horizon(HORIZON, ahead)
    assert any(compare(cluster)), "one side of each pair begins, and finds it"
    assert sum(cluster.records(peer) for peer in "abc") == 3 - len(ahead)
    reconcile_and_reap(cluster)
    assert horizons(cluster) == [HORIZON] * 3
    assert [cluster.records(peer) for peer in "abc"] == [0, 0, 0]
    assert compare(cluster) == [False] * 3


def test_unequal_horizons_without_differences_are_kept() -> None:
    cluster = Cluster(joins=False)
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW - 1000))
    cluster.set_horizon(HORIZON, "a")
    assert compare(cluster) == [False] * 3


def test_replica_with_different_records_does_not_adopt_a_horizon() -> None:
    cluster = deleted()
    cluster.set_horizon(HORIZON, "a")
    for peer in "bc":  # a refuses it, because it is below the horizon
        cluster.write(peer, stamp_at(NOW - 80_000))
    assert any(compare(cluster))
    reconcile_and_reap(cluster)
    assert horizons(cluster) == [HORIZON, 0, 0]
    assert [cluster.records(peer) for peer in "abc"] == [0, 1, 1]


@pytest.mark.parametrize(
    "why", ["a topology change runs", "a replica is down", "a replica has a later epoch"]
)
def test_unequal_horizon_waits_for_unavailable_replicas(why: str) -> None:
    cluster = deleted(joins=why == "a topology change runs")
    cluster.set_horizon(HORIZON, "a")
    assert any(compare(cluster))
    if why == "a replica is down":
        cluster.view = View(cluster.view.topology, frozenset("ab"))
    if why == "a replica has a later epoch":
        cluster.unanswered = {(peer, FloorRequest) for peer in "abc"}
    reconcile_and_reap(cluster)
    assert horizons(cluster) == [HORIZON, 0, 0]
    assert [cluster.records(peer) for peer in "abc"] == [0, 1, 1]


def test_horizon_is_not_used_when_storing_it_fails(
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
