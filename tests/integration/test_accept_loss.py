"""Loss of a majority of disks: the cluster serves again after accept-loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.schema import check
from tests.cli.test_cluster import Here
from tests.harness.peers import PATIENCE, Peers
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

KEYS = [f"k{number}" for number in range(100)]


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    """Three peers with data on each."""
    with Peers.local(tmp_path) as cluster:
        cluster.form("p1", "p2", "p3")
        cluster.client(timeout=10.0).batch_put("i", dict.fromkeys(KEYS, 1), write="all")
        yield cluster


def wipe(peers: Peers, *names: str) -> None:
    for name in names:
        peers[name].kill()
        shutil.rmtree(peers[name].data)
    for name in names:
        peers[name].start()


def waits(here: Here, text: str) -> None:
    wait_until(lambda: any(text in reason for reason in here.status()["waits"]), PATIENCE, text)


def test_accept_loss_recovers_from_two_lost_disks_of_three(peers: Peers) -> None:
    here = Here(peers)
    wipe(peers, "p2", "p3")
    waits(here, "4096 partitions of p2 lack 1 of the replicas that have every write")
    code, _, said = here.ask("cluster", "accept-loss", "p1", "-y")
    assert (code, "'p1' is alive and has its data" in said) == (1, True)
    code, out, said = here.ask("cluster", "accept-loss", "p2", "p3")
    assert code == 2
    assert "in a script, use --yes" in said
    assert "4096 of 4096 partitions have a replica on p2, p3" in out
    assert "writes that only p2, p3 acknowledged there are lost" in out
    code, out, _ = here.ask("-o", "json", "cluster", "accept-loss", "p2", "p3", "--dry-run")
    assert (code, check("cluster accept-loss", out)[0]["at_risk"]) == (0, 4096)
    assert not any(member["waived"] for member in here.status()["members"])
    code, out, _ = here.ask("-o", "json", "cluster", "accept-loss", "p2", "p3", "-y")
    assert code == 0
    check("cluster accept-loss", out)
    for name in ("p2", "p3"):
        peers[name].wait_ready()
    client = peers.client(timeout=10.0)
    assert client.batch_lookup("i", KEYS) == dict.fromkeys(KEYS, 1)
    client.put("i", "new", 2, write="all")
    assert client.count("i") == 101
    status = here.status()
    assert status["waits"] == []
    assert [member["waived"] for member in status["members"]] == ["", "", ""]
    check("status", json.dumps(status))


def test_accept_loss_recovers_from_two_lost_machines_of_three(peers: Peers) -> None:
    here = Here(peers)
    for name in ("p1", "p2", "p3"):
        peers[name].kill()
    peers["p1"].start()
    wait_until(
        lambda: "waiting for p2 or p3" in str(peers["p1"].page("/readyz").get("why")),
        PATIENCE,
        "p1 waits",
    )
    assert here.ask("cluster", "accept-loss", "p2", "p3", "-y")[0] == 0
    code, _, said = here.ask("cluster", "force-remove", "p2", "p3", "-y")
    assert code == 0, said
    wait_until(
        lambda: [member["id"] for member in here.status()["members"]] == ["p1"],
        PATIENCE,
        "p1 is alone",
    )
    client = peers.client(timeout=10.0)
    assert client.batch_lookup("i", KEYS) == dict.fromkeys(KEYS, 1)
    client.put("i", "new", 2)
