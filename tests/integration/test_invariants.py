"""Faults of real processes; each test checks the invariants I1 to I6 at its end.

``SOAK=10`` makes the runs ten times as long (``make soak``).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstash import Client
from tests.harness.consul import ConsulAgent, ConsulCluster
from tests.harness.invariants import check_invariants
from tests.harness.load import Load
from tests.harness.peers import PATIENCE, Peers
from tests.harness.waiting import stays_true, wait_until
from tests.harness.wires import CLIENT, WiredPeers

SOAK = int(os.environ.get("SOAK", "1"))
#: All periodic tasks run often.
HASTY = {
    "DSTASH_COMPARE_INTERVAL": "1",
    "DSTASH_GC_INTERVAL": "2",
    "DSTASH_GC_GRACE": "1",
}
#: The interval of tombstone GC in seconds.
LONGEST_INTERVAL = 2
NAMES = ("a", "b", "c")

pytestmark = pytest.mark.timeout(300 * SOAK)

TransportSecurity = tuple[str, str]


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, consul_agent: ConsulAgent
) -> Iterator[WiredPeers]:
    """Three peers on Consul, each with a proxy. Every test leaves them healthy."""
    name = f"wired-{uuid.uuid4().hex[:8]}"
    folder = tmp_path_factory.mktemp("wired")
    with WiredPeers.consul(folder, consul_agent.url, name) as peers:
        peers.environ |= HASTY
        peers.form(*NAMES)
        yield peers


@pytest.fixture
def wired(cluster: WiredPeers) -> Iterator[WiredPeers]:
    """Return that cluster, for one test."""
    yield cluster
    cluster.close_clients()


def more(load: Load, operations: int) -> None:
    """Wait until this many more calls have returned."""
    goal = load.operations + operations
    wait_until(lambda: load.operations >= goal or load.errors, 60, f"{operations} more calls")
    assert not load.errors, load.errors


def back(peers: Peers, *names: str) -> None:
    """Wait until peers serve again."""
    for name in names:
        peers[name].wait_ready()


def test_acked_writes_survive_kill_of_one_peer(wired: WiredPeers) -> None:
    for name in NAMES * SOAK if SOAK > 1 else "b":
        with Load(wired.client()) as load:
            more(load, 100)
            wired[name].kill()
            more(load, 150)
            wired[name].start()
            back(wired, name)
            more(load, 50)
        check_invariants(wired, load)


def test_acked_writes_survive_kill_of_all_peers(wired: WiredPeers) -> None:
    for _ in range(SOAK):
        with Load(wired.client(timeout=60.0)) as load:
            more(load, 150)
            for name in NAMES:
                wired[name].kill()
            for name in NAMES:
                wired[name].start()
            more(load, 50)
            back(wired, *NAMES)
        check_invariants(wired, load)


def test_peer_stopped_longer_than_its_session_rejoins(wired: WiredPeers) -> None:
    client = wired.client()

    def is_alive(name: str) -> bool:
        return next(
            bool(member["alive"]) for member in client.status()["members"] if member["id"] == name
        )

    for name in NAMES * SOAK if SOAK > 1 else "c":
        with Load(wired.client()) as load:
            more(load, 50)
            wired[name].freeze()
            wait_until(lambda name=name: not is_alive(name), 30, "its session is over")  # type: ignore[misc]
            more(load, 100)
            wired[name].thaw()
            wait_until(lambda name=name: is_alive(name), 30, "it has another session")  # type: ignore[misc]
            more(load, 50)
        check_invariants(wired, load)


def ways(name: str) -> dict[str, list[TransportSecurity]]:
    """Return the directions that can be cut around a peer."""
    others = [other for other in (*NAMES, CLIENT) if other != name]
    into, out = [(other, name) for other in others], [(name, other) for other in others]
    return {"both": into + out, "in": into, "out": out}


def test_partitioned_peer_loses_no_acked_write(wired: WiredPeers) -> None:
    every = [(name, how) for name in NAMES for how in ("both", "in", "out")] * SOAK
    for name, how in every if SOAK > 1 else zip(NAMES, ("both", "in", "out"), strict=True):
        with Load(wired.client()) as load:
            more(load, 50)
            wired.wires.cut(ways(name)[how])
            more(load, 100)
            wired.wires.restore()
            more(load, 50)
        check_invariants(wired, load)


def test_peers_cut_off_from_each_other_serve_connected_clients(wired: WiredPeers) -> None:
    between = [(name, other) for name in NAMES for other in NAMES if name != other]
    wait_until(lambda: all(wired.wires.moved[security] for security in between), 30, "messages")
    for _ in range(SOAK):
        with Load(wired.client()) as load:
            more(load, 50)
            wired.wires.cut(between)
            more(load, 150)
            wired.wires.restore()
            more(load, 50)
        check_invariants(wired, load)


def records(peers: Peers, *names: str) -> list[int]:
    """Return the number of records on the disks of peers, including tombstones."""
    return [int(peers[name].page("/status").get("records", -1)) for name in names]


def wait_until_buried(peers: Peers, client: Client) -> None:
    """Wait until no tombstone is left on any disk."""
    live = client.count("load")  # on every disk, and no others
    wait_until(
        lambda: records(peers, *NAMES) == [live] * len(NAMES),
        PATIENCE,
        "the tombstones have left every disk",
    )


def test_delete_missed_by_absent_replica_stays_deleted(wired: WiredPeers) -> None:
    """I3; the tombstones stay on disk while a replica is absent, and are collected later."""
    client = wired.client()
    keys = [f"gone-{number}" for number in range(200)]
    wait_until_buried(wired, client)  # tombstones of earlier tests
    for name in "a" if SOAK == 1 else NAMES * SOAK:
        client.batch_put("deleted", dict.fromkeys(keys, "old"), write="all").raise_for_failures()
        others = [other for other in NAMES if other != name]
        wired[name].kill()
        client.batch_delete("deleted", keys).raise_for_failures()
        before = records(wired, *others)
        stays_true(
            lambda some=others, all_of=before: records(wired, *some) == all_of,  # type: ignore[misc]
            3 * LONGEST_INTERVAL,  # two rounds of tombstone GC, if they ran without the replica
            "the tombstones wait for the one that is away",
        )
        with Load(wired.client()) as load:
            more(load, 400)
        held = records(wired, *others)
        assert all(now >= then for now, then in zip(held, before, strict=True)), (before, held)
        wired[name].start()
        back(wired, name)
        check_invariants(wired, load)
        for level in ("one", "quorum", "all"):
            assert client.batch_lookup("deleted", keys, read=level) == {}
        wait_until_buried(wired, client)
        assert client.batch_lookup("deleted", keys, read="all") == {}


@pytest.mark.usefixtures("no_leaks")
def test_replica_absent_past_the_horizon_returns_empty(tmp_path: Path) -> None:
    """I3: a member was removed, tombstones were dropped without it, and it returns."""
    with Peers.local(tmp_path) as peers:
        peers.environ |= HASTY
        peers.form("a", "b", "c", "d")
        client = peers.client()
        keys = [f"gone-{number}" for number in range(200)]
        kept = {f"kept-{number}": number for number in range(100)}
        client.batch_put("i", dict.fromkeys(keys, "old") | kept, write="all").raise_for_failures()
        peers["d"].kill()
        client.batch_delete("i", keys).raise_for_failures()
        wait_until(lambda: not_alive(peers, "d"), PATIENCE, "d is known to be dead")
        client.admin.remove(["d"])
        peers.settle(client)
        wait_until(
            lambda: records(peers, "a", "b", "c") == [len(kept)] * 3,
            PATIENCE,
            "tombstones are dropped",
        )
        peers["d"].start()
        wait_until(lambda: "d" in client.status()["candidates"], PATIENCE, "d waits to be added")
        client.admin.add(["d"])
        back(peers, "d")
        peers.settle(client)
        assert list(peers["d"].data.glob("set-aside-*")), "its old store is kept aside"
        assert client.batch_lookup("i", keys, read="all") == {}
        assert client.batch_lookup("i", list(kept), read="all") == kept
        with Load(peers.client()) as load:
            more(load, 50)
        load.check(client)


def not_alive(peers: Peers, name: str) -> bool:
    """Whether a peer is a member and reported as down."""
    members = peers.client().status()["members"]
    return any(member["id"] == name and not member["alive"] for member in members)


def leads(servers: list[ConsulAgent]) -> bool:
    """Whether one of these servers is the leader."""
    return any(server.is_leader for server in servers)


@pytest.mark.usefixtures("no_leaks")
def test_consul_leader_kills_lose_no_acked_write(tmp_path: Path) -> None:
    consul = ConsulCluster(tmp_path)
    consul.start()
    try:
        with Peers.consul(tmp_path, consul.followers()[0].url, "elections") as peers:
            peers.environ |= HASTY
            peers.form(*NAMES)
            with Load(peers.client()) as load:
                for _ in range(SOAK if SOAK > 1 else 2):
                    leader = consul.leader()
                    leader.stop()
                    more(load, 50)
                    left = [server for server in consul.servers if server is not leader]
                    wait_until(lambda some=left: leads(some), 60, "another leader")  # type: ignore[misc]
                    leader.start()
                    leader.wait_ready()
                    more(load, 20)
                wait_until(lambda: all(peers[name].is_ready() for name in NAMES), PATIENCE, "ready")
            check_invariants(peers, load)
    finally:
        consul.stop()
