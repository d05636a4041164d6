"""Peers that start while Consul is down, frozen or without a leader."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dstash.cluster.membership.consul.membership import ConsulMembership
from tests.harness.consul import ConsulAgent
from tests.harness.load import Load
from tests.harness.peers import Peer, Peers
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

AWAY = "the membership is out of reach (Consul at "


@pytest.fixture
def consul(tmp_path: Path) -> Iterator[ConsulAgent]:
    """An agent for one test, not started."""
    agent = ConsulAgent(tmp_path)
    yield agent
    agent.stop()


@pytest.fixture
def ipv6_consul(tmp_path: Path) -> Iterator[ConsulAgent]:
    """An agent for one test that listens on IPv6, not started."""
    agent = ConsulAgent(tmp_path, host="::1")
    yield agent
    agent.stop()


@pytest.fixture
def peers(tmp_path: Path, consul: ConsulAgent) -> Iterator[Peers]:
    """Three peers on a running Consul."""
    consul.start()
    consul.wait_ready()
    with Peers.consul(tmp_path, consul.url, "away") as peers:
        peers.form("a", "b", "c")
        yield peers


def holders(consul: ConsulAgent, cluster: str = "away") -> set[str]:
    """Return the ids of the peers whose lock is held in Consul."""
    keys = consul.get(f"kv/dstash/{cluster}/peers/?recurse") or []
    return {entry["Key"].rsplit("/", 1)[1] for entry in keys if entry.get("Session")}


def waits(peer: Peer) -> None:
    """Check that an empty peer waits and reports the reason."""
    wait_until(lambda: AWAY in str(peer.page("/readyz").get("why")), 30, "it says why")
    assert peer.page("/healthz")["healthy"]
    assert AWAY in str(peer.page("/readyz")["alerts"])
    assert peer.runs()


def stops(peer: Peer) -> None:
    """Check that a peer stops in time."""
    began = time.monotonic()
    assert peer.stop() == 0
    assert time.monotonic() - began < 10


class TestEmptyPeer:
    def test_empty_peer_waits_for_unreachable_consul_and_joins(
        self, tmp_path: Path, ipv6_consul: ConsulAgent
    ) -> None:
        consul = ipv6_consul
        with Peers.consul(tmp_path, consul.url, "away") as peers:
            waits(peers.start("a"))
            consul.start()
            consul.wait_ready()
            peers["a"].wait_ready()
            wait_until(
                lambda: peers["a"].page("/readyz")["alerts"] == [], 10, "the alert is cleared"
            )
            assert holders(consul) == {"a"}
            peers.client().put("i", "k", 1)

    def test_empty_peer_waits_for_frozen_consul_and_joins(
        self, tmp_path: Path, consul: ConsulAgent
    ) -> None:
        consul.start()
        consul.wait_ready()
        consul.freeze()
        with Peers.consul(tmp_path, consul.url, "away") as peers:
            waits(peers.start("a"))
            stops(peers["a"])
            peers["a"].start()
            waits(peers["a"])
            consul.thaw()
            peers["a"].wait_ready()
            wait_until(lambda: holders(consul) == {"a"}, 30, "it has its lock")

    def test_empty_peer_waits_for_consul_leader(self, tmp_path: Path) -> None:
        lonely = ["-server", "-bootstrap-expect", "3", "-data-dir", str(tmp_path / "consul")]
        consul = ConsulAgent(tmp_path, lonely)
        consul.start()
        try:
            with Peers.consul(tmp_path, consul.url, "away") as peers:
                waits(peers.start("a"))
                stops(peers["a"])
        finally:
            consul.stop()


class TestMember:
    @pytest.mark.parametrize("how", ["freeze", "stop"])
    def test_member_serves_with_topology_of_its_disk(
        self, peers: Peers, consul: ConsulAgent, how: str
    ) -> None:
        with Load(peers.client()) as load:
            getattr(consul, how)()
            for name in "ab":  # one at a time, so that there is always a quorum
                assert peers[name].stop() == 0
                peers[name].start()
                peers[name].wait_ready()
                page = peers[name].page("/readyz")
                assert AWAY in str(page["alerts"])
                assert "has started with the topology on its disk" in str(page["alerts"])
            goal = load.operations + 100
            wait_until(lambda: load.operations > goal or load.errors, 60, "more calls")
            peers.client().put("i", "k", 1, write="all")
            if how == "freeze":
                consul.thaw()
            else:
                consul.start()
                consul.wait_ready()
            wait_until(lambda: holders(consul) == set("abc"), 60, "all have their locks")
            for name in "abc":
                wait_until(
                    lambda: peers[name].page("/readyz")["alerts"] == [],  # noqa: B023
                    30,
                    "the trouble is over",
                )
                peers[name].wait_ready()
        load.check(peers.client())

    def test_members_serve_after_all_were_killed(self, peers: Peers, consul: ConsulAgent) -> None:
        peers.client().put("i", "k", 1, write="all")
        peers.close_clients()
        consul.freeze()
        for name in "abc":
            peers[name].kill()
        for name in "abc":
            peers[name].start()
        for name in "abc":
            peers[name].wait_ready()
        client = peers.client()
        assert client.lookup("i", "k", read="all") == 1
        client.put("i", "k", 2, write="all")
        consul.thaw()
        wait_until(lambda: holders(consul) == set("abc"), 60, "all have their locks")
        assert client.lookup("i", "k", read="all") == 2

    def test_member_adopts_later_topology_of_another_member(
        self, peers: Peers, consul: ConsulAgent
    ) -> None:
        def epoch(name: str) -> int:
            return int(peers[name].page("/status").get("epoch", 0))

        def knows(name: str, least: int) -> bool:
            return epoch(name) >= least

        membership = ConsulMembership(consul.url, "away")
        stored = membership.read()
        assert stored.topology is not None
        peers["b"].freeze()
        assert membership.compare_and_set(stored.topology.next(), stored.token)
        membership.close()
        for name in "ac":
            wait_until(partial(knows, name, stored.topology.epoch + 1), 30, f"{name} knows it")
        consul.freeze()
        peers["b"].thaw()
        # Consul would be asked for 5 s; a member that knows the epoch answers sooner.
        peers.client(timeout=3.0).put("i", "k", 1, write="all")
        consul.thaw()

        before = epoch("b")
        assert peers["b"].stop() == 0
        peers.start("d").wait_ready()  # which changes the topology
        peers.settle(peers.client())
        wait_until(
            lambda: epoch("a") == epoch("c") == epoch("d") > before, 60, "the topology has changed"
        )
        consul.freeze()
        peers["b"].start()
        peers["b"].wait_ready()
        wait_until(lambda: epoch("b") == epoch("a"), 60, "it uses the later topology")
        assert AWAY in str(peers["b"].page("/readyz")["alerts"])
        peers.client().put("i", "k", 1, write="all")
        consul.thaw()
        wait_until(lambda: holders(consul) == set("abcd"), 60, "all have their locks")
        wait_until(lambda: peers["b"].page("/readyz")["alerts"] == [], 60, "the trouble is over")

    def test_member_without_its_store_waits(self, peers: Peers, consul: ConsulAgent) -> None:
        assert peers["b"].stop() == 0
        for file in peers["b"].data.iterdir():
            file.unlink()
        consul.freeze()
        peers["b"].start()
        waits(peers["b"])
        consul.thaw()
        peers["b"].wait_ready()

    def test_member_ends_when_another_process_took_its_id(
        self, peers: Peers, consul: ConsulAgent
    ) -> None:
        assert peers["b"].stop() == 0
        session = consul.put("session/create", '{"LockDelay": "0s"}')
        assert consul.put(f"kv/dstash/away/peers/b?acquire={session['ID']}", "{}")
        consul.freeze()
        peers["b"].start()
        wait_until(lambda: AWAY in str(peers["b"].page("/readyz")), 30, "it has started")
        consul.thaw()
        assert peers["b"].wait_end() == 1
        last = peers["b"].log.read_text().splitlines()[-1]
        assert last.startswith("dstash-peer: peer id 'b' is in use by a live process")
