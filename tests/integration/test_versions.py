"""Peers and clients of two protocol versions in one cluster, and a rolling upgrade."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.harness.devcluster import clean_environment
from tests.harness.load import Load
from tests.harness.peers import DSTASH_PEER, Peer, Peers

NEXT = [sys.executable, "-P", str(Path(__file__).parents[1] / "harness" / "tomorrow.py")]
VALUES = {f"k{n}": [n, "v" * 50] for n in range(300)}

pytestmark = pytest.mark.timeout(300)


def ask(peers: Peers, *words: str, tool: Sequence[str] = NEXT) -> str:
    """Run ``dstash`` of the next version against the cluster; return its output."""
    where = [f"--peers={peer.address}" for peer in peers.all.values()]
    done = subprocess.run(
        [*tool, "dstash", *where, *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "heard versions" in done.stderr
    return done.stdout


def restart_as(peer: Peer, command: Sequence[str]) -> None:
    """Restart a peer as another version."""
    assert peer.stop() == 0
    peer.command = list(command)
    peer.start()
    peer.wait_ready()


def heard(peer: Peer) -> list[str]:
    """Return the versions of the requests to a peer of the next version, for each of its runs."""
    lines = peer.log.read_text().splitlines()
    return [line.removeprefix("heard versions ") for line in lines if "heard versions" in line]


def check_nothing_was_misunderstood(peers: Peers) -> None:
    """Check the refusals of peers of today's version."""
    for peer in peers.all.values():
        counts = peer.page("/status")["counts"]
        wrong = {name: count for name, count in counts.items() if "Mismatch" in name}
        assert (counts.get("malformed", 0), wrong) == (0, {}), peer.name


@pytest.mark.long
def test_mixed_versions_and_rolling_upgrade_under_load(tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("p1", "p2", "p3")
        client = peers.client()
        with Load(peers.client()) as load:
            restart_as(peers["p3"], [*NEXT, "dstash-peer"])
            client.batch_put("i", VALUES, write="all").raise_for_failures()
            ask(peers, "--write", "all", "put", "i", "from-next", "1")
            assert client.lookup("i", "from-next", read="all") == "1"
            assert ask(peers, "--read", "all", "count", "i").strip() == "301"
            peers.start("p4")  # and data moves between them
            peers["p4"].wait_ready()
            peers.settle(client)
            check_nothing_was_misunderstood(peers)
            for name in ("p1", "p2", "p4"):
                restart_as(peers[name], [*NEXT, "dstash-peer"])
            assert client.batch_lookup("i", VALUES, read="all") == VALUES
            versions = {member["version"] for member in client.status()["members"]}
            assert len(versions) == 1
            assert versions.pop().endswith(".next")
            ask(peers, "--write", "all", "put", "i", "from-next", "2")
            restart_as(peers["p3"], [DSTASH_PEER])  # and back
            assert client.lookup("i", "from-next", read="all") == "2"
        load.check(client)
        for name in ("p1", "p2", "p4"):
            assert peers[name].stop() == 0
            assert heard(peers[name]) == [
                "[1, 2, 3]"
            ]  # a connection starts with version 1, and today's peers support version 2
        assert heard(peers["p3"])[0] in ("[1, 2]", "[1, 2, 3]")
