"""The directory of the local membership is deleted, moved, replaced or corrupted under load."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.load import Load
from tests.harness.peers import Peers
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")


def home(peers: Peers) -> Path:
    """Return the directory of the membership."""
    return peers.folder / "membership" / "dstash"


def topology(peers: Peers) -> Path:
    """Return the file that holds the topology."""
    return home(peers) / "topology.json"


def epochs(peers: Peers) -> set[int]:
    """Return the epochs that the running peers use."""
    running = [peer for peer in peers.all.values() if peer.runs()]
    return {int(peer.page("/status").get("epoch", 0)) for peer in running}


def delete_tree(path: Path) -> None:
    """Delete a directory in which peers may write at the same time."""
    while path.exists():
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise


def delete(peers: Peers) -> None:
    """Delete the directory."""
    delete_tree(home(peers))


def delete_all(peers: Peers) -> None:
    """Delete the parent directory too."""
    delete_tree(home(peers).parent)


def move_away(peers: Peers) -> None:
    """Move the directory away."""
    home(peers).rename(peers.folder / "away")


def replace_by_old_copy(peers: Peers) -> None:
    """Restore a copy of the directory from before the last change."""
    shutil.copytree(home(peers), peers.folder / "copy")
    peers.start("d").wait_ready()
    peers.settle(peers.client())
    home(peers).rename(peers.folder / "away")
    (peers.folder / "copy").rename(home(peers))


def replace_by_file_for_a_while(peers: Peers) -> None:
    """Replace the directory by a file until the peers report it."""
    home(peers).rename(peers.folder / "away")
    home(peers).touch()
    said = "the membership is out of reach"
    for name in "abc":
        wait_until(lambda: said in str(peers[name].page("/readyz")), 30, f"{name} says so")  # noqa: B023
    home(peers).unlink()


def cut_off(peers: Peers) -> None:
    """Truncate the file to half its size."""
    os.truncate(topology(peers), topology(peers).stat().st_size // 2)


def empty(peers: Peers) -> None:
    """Truncate the file to zero bytes."""
    os.truncate(topology(peers), 0)


def overwrite(peers: Peers) -> None:
    """Fill the file with garbage."""
    topology(peers).write_bytes(os.urandom(50_000))


def delete_file(peers: Peers) -> None:
    """Delete only the file."""
    topology(peers).unlink()


@pytest.mark.parametrize(
    "harm",
    [
        *(delete, delete_all, move_away, replace_by_old_copy, replace_by_file_for_a_while),
        *(cut_off, empty, overwrite, delete_file),
    ],
)
def test_peers_serve_and_restore_lost_topology(own: Peers, harm: Callable[[Peers], None]) -> None:
    before = max(epochs(own))
    with Load(own.client()) as load:
        wait_until(lambda: load.operations > 50 or load.errors, 60, "calls")
        harm(own)
        restored = before + (1 << 20)
        wait_until(
            lambda: len(epochs(own)) == 1 and min(epochs(own)) >= restored,
            30,
            "all peers use one restored topology",
        )
        goal = load.operations + 100
        wait_until(lambda: load.operations > goal or load.errors, 60, "more calls")
        # A restarted peer finds the cluster, and an empty peer joins it.
        assert own["b"].stop() == 0
        own["b"].start()
        own["b"].wait_ready()
        own.start("e").wait_ready()
    load.check(own.client())
    client = own.client()
    own.settle(client)
    assert {"a", "b", "c", "e"} <= own.members(client)
    assert len({status["cluster_id"] for status in (own.finder().status(), client.status())}) == 1
    wait_until(lambda: len(epochs(own)) == 1, 30, "all peers use one topology")
    for peer in own.all.values():
        assert peer.runs()
        assert peer.page("/readyz")["alerts"] == []


def test_peer_restarted_with_new_membership_directory_attracts_no_client(own: Peers) -> None:
    """The other peers read the new directory before it can restore the topology alone."""
    client = own.client()
    client.put("i", "k", 1)
    assert own["b"].stop() == 0
    for name in "ac":
        own[name].freeze()
    delete(own)
    own["b"].start()
    said = "is used once 1 more of a, c have confirmed it"
    wait_until(lambda: said in str(own["b"].page("/readyz").get("why")), 30, "b waits for others")
    for name in "ac":
        own[name].thaw()
    own["b"].wait_ready()
    client.put("i", "k", 2, write="all")
    assert client.lookup("i", "k", read="all") == 2
    assert len(epochs(own)) == 1


def test_foreign_topology_without_live_members_is_replaced(own: Peers, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with Peers.local(tmp_path / "other") as others:
        others.form("x", "y")
        others["x"].kill()
        others["y"].kill()
        shutil.copy(topology(others), topology(own))
    with Load(own.client()) as load:
        wait_until(lambda: len(epochs(own)) == 1 and min(epochs(own)) > 1 << 20, 30, "restored")
        goal = load.operations + 50
        wait_until(lambda: load.operations > goal or load.errors, 60, "calls")
    load.check(own.client())


class TestTopologyLostWhileAllAreDown:
    @pytest.mark.parametrize("harm", [cut_off, overwrite, delete])
    def test_members_restore_lost_topology_from_their_stores(
        self, own: Peers, harm: Callable[[Peers], None]
    ) -> None:
        client = own.client()
        client.put("i", "k", 1, write="all")
        for name in "abc":
            own[name].kill()
        harm(own)
        for name in "abc":
            own[name].start()
        for name in "abc":
            own[name].wait_ready()
        assert own.client().lookup("i", "k", read="all") == 1

    def test_empty_peer_forms_no_cluster_over_corrupt_topology(self, own: Peers) -> None:
        for name in "abc":
            own[name].kill()
        cut_off(own)
        empty = own.start("d")
        expected = "topology.json is corrupt"
        wait_until(lambda: expected in str(empty.page("/readyz").get("why")), 30, "it says why")
        assert empty.page("/healthz")["healthy"]
        for name in "abc":
            own[name].start()
        for name in "abcd":
            own[name].wait_ready()
        client = own.client()
        own.settle(client)
        assert own.members(client) == set("abcd")


def test_health_and_status_report_lost_membership(own: Peers) -> None:
    home(own).rename(own.folder / "away")
    home(own).touch()
    seeds = ",".join(peer.address for peer in own.all.values())
    said = "the membership is out of reach"

    def says_so(*command: str) -> bool:
        done = subprocess.run(
            [Path(sys.executable).parent / "dstash", "--peers", seeds, *command],
            capture_output=True,
            text=True,
            check=False,
        )
        return said in done.stdout + done.stderr

    wait_until(lambda: says_so("health"), 30, "dstash health names it")
    wait_until(lambda: says_so("status"), 30, "dstash status names it")
    home(own).unlink()
    wait_until(lambda: not says_so("health"), 30, "it is over")
