"""Adding, removing, replacing and restarting real peers under load.

In every run no call fails, every acked write is readable, deleted keys stay deleted, and all
replicas are equal at the end. ``SOAK=10`` (``make soak``) makes every run ten times in a row, on
Consul too, with 2,000 operations a second at the same time.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dstash import Client
from dstash.cluster.topology.topology import State
from dstash.errors import ChangeConflict
from dstash.store.directory import is_marked_removed
from tests.harness.consul import ConsulAgent
from tests.harness.load import Load
from tests.harness.peers import PATIENCE, Peer, Peers
from tests.harness.replicas import wait_until_cleaned_up, wait_until_equal
from tests.harness.waiting import stays_true, wait_for_rest, wait_until

SOAK = int(os.environ.get("SOAK", "1"))
#: Enough data to interrupt a topology change at a low rate.
RECORDS = 3000
SLOW = 60_000

pytestmark = pytest.mark.timeout(300 * SOAK)


#: The lowest number of operations a second on an idle machine.
STEADY = 2000


@pytest.fixture(params=["local", "consul"] if SOAK > 1 else ["local"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peers]:
    """A cluster without peers."""
    if request.param == "local":
        made = Peers.local(tmp_path)
    else:
        agent: ConsulAgent = request.getfixturevalue("consul_agent")
        made = Peers.consul(tmp_path, agent.url, f"scaling-{uuid.uuid4().hex[:8]}")
    with made as cluster:
        yield cluster


@pytest.fixture
def peers(empty: Peers) -> Peers:
    """Three peers, each in its own zone."""
    empty.form("p1", "p2", "p3")
    return empty


def fill(client: Client) -> None:
    """Store the data that will move."""
    client.batch_put("data", {f"k{n}": "v" * 100 for n in range(RECORDS)}).raise_for_failures()


def check_data(client: Client) -> None:
    """Read every record from every replica."""
    keys = [f"k{n}" for n in range(RECORDS)]
    assert len(client.batch_lookup("data", keys, read="all", timeout=60)) == RECORDS


def check(cluster: Peers, client: Client, load: Load) -> None:
    """Check the results of a load and the data of the peers against the invariants."""
    load.check(client)
    check_data(client)
    wait_until_equal(cluster, client)
    assert SOAK == 1 or load.rate >= STEADY, f"only {load.rate:.0f} operations a second"


def candidate(cluster: Peers, client: Client, name: str) -> Peer:
    """Start a candidate, and wait until it waits to be added."""
    cluster.start(name, "--join", "manual")
    wait_for_candidate(cluster, client, name)
    return cluster[name]


def wait_for_candidate(cluster: Peers, client: Client, name: str) -> None:
    """Start a peer unless it runs, and wait until it can be added."""
    peer = cluster[name]
    if not peer.runs():
        peer.start()
    # The others may still consider the killed process alive, so the peer itself is asked.
    waits = "not a member"
    wait_until(lambda: waits in str(peer.page("/readyz").get("why")), PATIENCE, f"{name} waits")
    wait_until(lambda: name in client.status()["candidates"], PATIENCE, f"{name} is seen")


def begin(cluster: Peers, client: Client, action: str, *names: str) -> None:
    """Start a change that is slow enough for faults during it."""
    wait_until_cleaned_up(cluster, client)  # otherwise recently moved data need not move back
    client.admin.request(action, names, rate=SLOW)
    gaining = [
        target.id
        for target in client.topology().after()
        if action == "remove" or target.id in names
    ]
    wait_until(
        lambda: any(
            member.get("maintenance", {}).get("streamed_records")
            for member in client.status()["members"]
            if member["id"] in gaining and member.get("maintenance", {}).get("streaming")
        ),
        PATIENCE,
        "records move",
    )
    assert client.topology().change is not None


def hurry(cluster: Peers, client: Client) -> None:
    """Let the change complete."""
    with contextlib.suppress(ChangeConflict):  # it has already ended
        client.admin.rate(0)
    cluster.settle(client)


def scale(cluster: Peers, client: Client) -> None:
    """3 -> 5 -> 3 peers -> replace one."""
    were_removed = [name for name in ("p4", "p5") if name in cluster.all]  # in an earlier round
    for name in ("p4", "p5"):
        cluster.start(name)
    if were_removed:
        for name in were_removed:
            wait_for_candidate(cluster, client, name)
        client.admin.add(were_removed)
    wait_until(lambda: len(cluster.members(client)) == 5, PATIENCE, "five members")
    cluster.settle(client)
    client.admin.remove(["p4", "p5"])
    assert [cluster[name].wait_end() for name in ("p4", "p5")] == [0, 0]
    cluster.settle(client)
    candidate(cluster, client, "p6")
    client.admin.replace("p1", "p6")
    assert cluster["p1"].wait_end() == 0
    cluster.settle(client)
    assert cluster.members(client) == {"p2", "p3", "p6"}


@pytest.mark.long
def test_cluster_scales_to_five_and_back_and_replaces_a_peer(peers: Peers) -> None:
    client = peers.client()
    fill(client)
    with Load(peers.client()) as load:
        scale(peers, client)
    check(peers, client, load)
    wait_for_candidate(peers, client, "p1")  # it was removed, so it waits without its data
    assert peers["p1"].stop() == 0
    wait_for_candidate(peers, client, "p1")  # at each start
    page = peers["p1"].page("/readyz")
    assert "it was removed from it, and waits for: dstash cluster add p1" in page["why"]
    assert peers["p1"].page("/healthz")["healthy"]
    (aside,) = peers["p1"].data.glob("set-aside-*")
    peers["p1"].wait_logged(str(aside))
    client.admin.add(["p1"])
    peers["p1"].wait_ready()
    peers.settle(client)
    assert list(peers["p1"].page("/status")["set_aside"]) == [aside.name]
    assert not is_marked_removed(peers["p1"].data), "from now on it is a member like any other"
    load.check(client)


@pytest.mark.long
def test_cluster_scales_on_consul(tmp_path: Path, consul_agent: ConsulAgent) -> None:
    name = f"scaling-{uuid.uuid4().hex[:8]}"
    with Peers.consul(tmp_path, consul_agent.url, name) as cluster:
        cluster.form("p1", "p2", "p3")
        client = cluster.client()
        fill(client)
        for _ in range(SOAK):
            with Load(cluster.client()) as load:
                scale(cluster, client)
            check(cluster, client, load)
            if SOAK > 1:  # back to the first placement
                candidate(cluster, client, "p1")
                client.admin.replace("p6", "p1")
                cluster["p6"].wait_end()
                cluster.settle(client)


@pytest.mark.long
def test_topology_change_survives_killed_peers(peers: Peers) -> None:
    client = peers.client()
    fill(client)
    candidate(peers, client, "p4")
    with Load(peers.client()) as load:
        for _ in range(SOAK):
            joiner_dies_and_comes_back(peers, client)
            source_dies_and_comes_back(peers, client)
            joiner_stays_dead_and_is_cancelled(peers, client)
            leaver_dies(peers, client)
            conductor_dies(peers, client)
    check(peers, client, load)


def joiner_dies_and_comes_back(cluster: Peers, client: Client) -> None:
    """Kill a joining peer: it continues after its restart."""
    begin(cluster, client, "add", "p4")
    cluster["p4"].kill()
    cluster["p4"].start()
    hurry(cluster, client)
    assert cluster.members(client) == {"p1", "p2", "p3", "p4"}


def source_dies_and_comes_back(cluster: Peers, client: Client) -> None:
    """Kill a source of the data, which may be the coordinator, while another peer leaves."""
    begin(cluster, client, "remove", "p4")
    cluster["p1"].kill()
    cluster["p1"].start()
    hurry(cluster, client)
    assert cluster["p4"].wait_end() == 0
    assert cluster.members(client) == {"p1", "p2", "p3"}


def joiner_stays_dead_and_is_cancelled(cluster: Peers, client: Client) -> None:
    """Kill a joining peer and cancel the change."""
    wait_for_candidate(cluster, client, "p4")
    begin(cluster, client, "add", "p4")
    cluster["p4"].kill()
    client.admin.cancel()
    assert client.topology().change is None
    assert cluster.members(client) == {"p1", "p2", "p3"}


def leaver_dies(cluster: Peers, client: Client) -> None:
    """Kill a leaving peer: the others have its data. It returns empty."""
    wait_for_candidate(cluster, client, "p4")
    client.admin.add(["p4"])
    cluster.settle(client)
    begin(cluster, client, "remove", "p4")
    cluster["p4"].kill()
    hurry(cluster, client)
    assert cluster.members(client) == {"p1", "p2", "p3"}
    wait_for_candidate(cluster, client, "p4")


def conductor_dies(cluster: Peers, client: Client) -> None:
    """Kill the coordinator at the end of a change."""
    client.admin.add(["p4"])
    cluster.settle(client)
    begin(cluster, client, "remove", "p4")
    client.admin.rate(0)
    wait_until(
        lambda: (change := client.topology().change) is None or change.switched, PATIENCE, ""
    )
    cluster["p1"].kill()
    cluster.settle(client)
    assert cluster["p4"].wait_end() == 0
    cluster["p1"].start()
    cluster["p1"].wait_ready()
    wait_for_candidate(cluster, client, "p4")


def test_pause_stops_streaming_and_cancel_reverts(peers: Peers) -> None:
    client = peers.client()
    fill(client)
    joiner = candidate(peers, client, "p4")
    begin(peers, client, "add", "p4")
    client.admin.pause()

    def held() -> int:
        return int(joiner.page("/status")["records"])

    epoch = client.topology().epoch
    wait_until(lambda: joiner.page("/status")["epoch"] >= epoch, PATIENCE, "it pauses")
    assert joiner.page("/status")["maintenance"]["streaming"] > 0  # the remaining work
    before = wait_for_rest(held, 1, PATIENCE, "requests in flight have arrived")
    stays_true(lambda: held() == before, 1.5 * SOAK, "nothing moves")
    client.admin.resume()
    wait_until(lambda: held() > before, PATIENCE, "it continues")
    with Load(peers.client()) as load:
        client.admin.cancel()
        assert joiner.wait_end() == 0
    assert peers.members(client) == {"p1", "p2", "p3"}
    assert all(member.state is State.ACTIVE for member in client.topology().members)
    check(peers, client, load)


@pytest.mark.long
def test_zone_loss_and_rolling_restart_lose_no_write(empty: Peers) -> None:
    empty.form("p1", "p2", "p3", "p4", zones="abcc")
    client = empty.client()
    idle = empty.finder()
    fill(idle)
    with Load(empty.client()) as load:
        for _ in range(SOAK):
            lose_zone(empty, load)
            for peer in empty.all.values():
                restart(peer, peer.move if peer.name == "p1" else lambda: None)
    check(empty, client, load)
    for peer in empty.all.values():
        restart(peer, peer.move)
    check_data(idle)  # it was frozen throughout, and all addresses have changed


def lose_zone(cluster: Peers, load: Load) -> None:
    """Kill a whole zone, wait for many calls without it, and restart it."""
    for name in ("p3", "p4"):
        cluster[name].kill()
    before = load.operations
    wait_until(lambda: load.errors or load.operations > before + 150, PATIENCE, "calls succeed")
    for name in ("p3", "p4"):
        cluster[name].start()
    for name in ("p3", "p4"):
        cluster[name].wait_ready()


def restart(peer: Peer, between: Callable[[], None]) -> None:
    """Restart a peer as an operator does."""
    assert peer.stop() == 0
    between()
    peer.start()
    peer.wait_ready()


def test_topology_change_moves_no_more_than_needed(peers: Peers) -> None:
    client = peers.client()
    fill(client)

    def moved() -> dict[str, int]:
        members = client.status()["members"]
        taken = {member["id"]: member["maintenance"]["streamed_records"] for member in members}
        return {name: records for name, records in taken.items() if records}

    candidate(peers, client, "p4")
    client.admin.add(["p4"])
    peers.settle(client)
    fair = RECORDS * 3 / 4  # 3 copies of each, over 4 peers
    assert moved() == {"p4": pytest.approx(fair, rel=0.1)}
    held = moved()["p4"]
    client.admin.remove(["p4"])
    assert peers["p4"].wait_end() == 0
    peers.settle(client)
    assert sum(moved().values()) <= held  # less if it had not been cleaned up yet


def test_failed_members_are_forgotten_and_rejoin_empty(tmp_path: Path) -> None:
    settings = tmp_path / "peer.toml"
    settings.write_text("down_out_after = 3.0\n")
    with Peers.local(tmp_path, "--config", str(settings)) as cluster:
        cluster.form("p1", "p2", "p3", "p4")
        client = cluster.client()
        fill(client)
        cluster["p4"].kill()
        wait_until(lambda: len(cluster.members(client)) == 3, PATIENCE, "p4 is given up")
        check_data(client)
        client.batch_delete("data", [f"k{n}" for n in range(100)]).raise_for_failures()
        wait_for_candidate(cluster, client, "p4")
        client.admin.add(["p4"])
        cluster["p4"].wait_ready()
        cluster.settle(client)
        (aside,) = cluster["p4"].data.glob("set-aside-*")
        cluster["p4"].wait_logged(str(aside))
        assert client.batch_lookup("data", [f"k{n}" for n in range(100)], read="all") == {}
        wait_until_equal(cluster, client)
