"""The health of a peer: readiness, problems and status."""

from __future__ import annotations

import pytest

from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.peer.health import Health
from dstash.store.memory import TwinStore

START = 1_700_000_000_000


def view(names: str = "a", *, min_peers: int = 1, store_id: str = "store-a") -> View:
    members = tuple(Member(name, f"tcp://{name}:1", store_id, name) for name in names)
    formed = len(names) >= min_peers
    topology = Topology("c", "id", 5, 1, min_peers, formed=formed, members=members)
    return View(topology, frozenset(names))


@pytest.fixture
def core() -> PeerCore:
    return PeerCore(Settings("a", "c"), TwinStore(), START)


@pytest.fixture
def health(core: PeerCore) -> Health:
    return core.health


def test_readiness_reports_start_then_wait_then_membership(core: PeerCore, health: Health) -> None:
    assert health.why_not_ready() == "the peer is starting"
    health.not_ready = None
    assert health.why_not_ready() == "the peer has not joined a cluster"
    health.waits_for = "a lock"
    assert health.why_not_ready() == "a lock"
    core.install(view(), START)
    core.tick(START)
    assert health.why_not_ready() is None


def test_readiness_reports_forming_cluster(core: PeerCore, health: Health) -> None:
    health.not_ready = None
    core.install(view(min_peers=3), START)
    core.tick(START)
    assert health.why_not_ready() == "cluster 'c' has 1 of at least 3 peers (min_peers)"


def test_readiness_reports_peer_that_is_no_member(core: PeerCore, health: Health) -> None:
    health.not_ready = None
    core.install(view("b"), START)
    core.tick(START)
    assert health.why_not_ready() == "the peer is not a member of the cluster"
    # Its store confirms nothing before it is a member.
    core.local_partitions.freshness_confirmed = False
    assert health.why_not_ready() == "the peer is not a member of the cluster"
    health.waits_for = "it was removed"
    assert health.why_not_ready() == "it was removed"


def test_readiness_reports_stop_before_other_reasons(core: PeerCore, health: Health) -> None:
    core.install(view(min_peers=3), START)
    health.stopping = True
    assert health.why_not_ready() == "the peer is stopping"
    assert str(health.refusal()) == "a: the peer is stopping"


def test_status_agrees_with_readiness_and_problems(core: PeerCore, health: Health) -> None:
    health.not_ready = None
    core.install(view(), START)
    core.tick(START + 2500)
    health.problems["disk"] = "the disk is slow"
    health.counts["malformed"] += 1
    health.set_aside = lambda: {"set-aside-1": 4096}
    status = health.status()
    assert status["set_aside"] == {"set-aside-1": 4096}
    assert (status["ready"], status["why_not_ready"]) == (True, "")
    assert (status["epoch"], status["uptime_s"]) == (5, 2)
    assert status["alerts"] == ["the disk is slow"]
    assert status["counts"] == {"malformed": 1}
