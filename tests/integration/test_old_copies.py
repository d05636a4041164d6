"""Real peers with an old copy of their disk: they neither vote nor answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dstash.errors import Unavailable
from dstash.peer.background.claims import SUSPECTED
from dstash.store.directory import UNSYNCED_FILE
from tests.harness.peers import Peer, Peers
from tests.harness.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

KEYS = [f"k{number}" for number in range(50)]


def put_back(peer: Peer, copy: Path) -> None:
    shutil.rmtree(peer.data)
    shutil.copytree(copy, peer.data)


def with_old_copy(peers: Peers, tmp_path: Path) -> Path:
    """Return a copy of the disk of ``a``, made before all keys were deleted."""
    client = peers.client(timeout=10.0)
    client.batch_put("i", dict.fromkeys(KEYS, 1), write="all")
    peers["a"].stop()
    copy = tmp_path / "copy"
    shutil.copytree(peers["a"].data, copy)
    peers["a"].start()
    peers["a"].wait_ready()
    client.batch_delete("i", KEYS, write="all")
    return copy


def problems(peer: Peer) -> object:
    return peer.page("/readyz")["alerts"]


def restart(peers: Peers) -> None:
    for name in "abc":
        peers[name].start()
    for name in "abc":
        peers[name].wait_ready()


def test_client_sightings_reveal_old_copies_of_all_disks(tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("a", "b", "c")
        client = peers.client(timeout=10.0)
        client.batch_put("i", dict.fromkeys(KEYS, 1), write="all")
        for name in "abc":
            assert peers[name].stop() == 0
        for name in "abc":
            shutil.copytree(peers[name].data, tmp_path / f"copy-{name}")
        restart(peers)
        client.batch_put("i", dict.fromkeys(KEYS, 2), write="all")
        for name in "abc":
            assert peers[name].stop() == 0
        restart(peers)
        assert client.batch_lookup("i", KEYS) == dict.fromkeys(KEYS, 2)
        client.batch_put("i", dict.fromkeys(KEYS, 3), write="all")
        assert [problems(peers[name]) for name in "abc"] == [[], [], []]
        for name in "abc":
            assert peers[name].stop() == 0
            put_back(peers[name], tmp_path / f"copy-{name}")
        restart(peers)
        assert [problems(peers[name]) for name in "abc"] == [[], [], []]  # no other member can know
        for name in "abc":
            wait_until(
                lambda: client.status() and problems(peers[name]) == [SUSPECTED],  # noqa: B023
                PATIENCE,
                "the client has sent its claim",
            )
            wait_until(
                lambda: SUSPECTED in peers[name].log.read_text(),  # noqa: B023
                PATIENCE,
                "the line is in the log",
            )
            assert peers[name].page("/readyz")["ready"]
        members = client.status()["members"]
        assert [member["alerts"] for member in members] == 3 * [[SUSPECTED]]
        assert client.batch_lookup("i", KEYS) == dict.fromkeys(KEYS, 1)


def test_old_copy_is_recognised_by_members_restarted_meanwhile(tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("a", "b", "c")
        copy = with_old_copy(peers, tmp_path)
        assert peers["a"].stop() == 0
        for name in "bc":
            peers[name].stop()
            peers[name].start()
            peers[name].wait_ready()
        put_back(peers["a"], copy)
        peers["a"].start()
        peers["a"].wait_ready()
        peers["a"].wait_logged("this store is an old copy")
        assert problems(peers["a"]) == []
        peers["c"].stop()
        assert peers.client(timeout=10.0).batch_lookup("i", KEYS) == {}


def test_old_copy_started_alone_waits_and_names_missing_members(tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("a", "b", "c")
        copy = with_old_copy(peers, tmp_path)
        for name in "abc":
            peers[name].stop()
        put_back(peers["a"], copy)
        peers["a"].start()
        wait_until(
            lambda: "waiting for b or c" in str(peers["a"].page("/readyz").get("why")),
            PATIENCE,
            "the peer names the members that it waits for",
        )
        peers["b"].start()
        peers["b"].wait_ready()
        wait_until(
            lambda: "this store is an old copy" in peers["a"].log.read_text(),
            PATIENCE,
            "the old copy is recognised",
        )
        peers["c"].start()
        peers["a"].wait_ready()
        assert peers.client(timeout=10.0).batch_lookup("i", KEYS) == {}


def test_machine_that_stops_before_a_sync_loses_no_write_of_a_quorum(tmp_path: Path) -> None:
    with Peers.local(tmp_path, "--durability", "interval") as peers:
        peers.form("a", "b", "c")
        client = peers.client(timeout=10.0)
        client.batch_put("i", dict.fromkeys(KEYS, 1), write="all")
        assert peers["a"].stop() == 0
        copy = tmp_path / "copy"
        shutil.copytree(peers["a"].data, copy)
        peers["a"].start()
        peers["a"].wait_ready()
        client.batch_lookup("i", KEYS, read="all")
        peers["c"].freeze()
        client.batch_put("i", dict.fromkeys(KEYS, 2), write="quorum")  # acked by a and b
        note = (peers["a"].data / UNSYNCED_FILE).read_bytes()
        peers["a"].kill()
        put_back(peers["a"], copy)  # all that was on its disk when its machine stopped
        (peers["a"].data / UNSYNCED_FILE).write_bytes(note[::-1])  # the id of another boot
        peers["c"].thaw()
        peers["a"].start()
        peers["a"].wait_logged("it stopped before all commits were synced")
        peers["a"].wait_ready()
        peers["b"].kill()
        assert client.batch_lookup("i", KEYS) == dict.fromkeys(KEYS, 2)


def test_all_machines_that_stop_before_a_sync_need_an_operator(tmp_path: Path) -> None:
    with Peers.local(tmp_path, "--durability", "interval") as peers:
        peers.form("a", "b", "c")
        client = peers.client(timeout=10.0)
        client.batch_put("i", dict.fromkeys(KEYS, 1), write="all")
        for name in "abc":
            note = (peers[name].data / UNSYNCED_FILE).read_bytes()
            peers[name].kill()
            (peers[name].data / UNSYNCED_FILE).write_bytes(note[::-1])
        for name in "abc":
            peers[name].start()
        for name in "abc":
            peers[name].wait_logged("it stopped before all commits were synced")
        with pytest.raises(Unavailable):
            client.lookup("i", KEYS[0], timeout=3.0)
        client.admin.accept_loss(["a", "b", "c"])
        for name in "abc":
            peers[name].wait_ready()
        assert client.batch_lookup("i", KEYS, timeout=30.0) == dict.fromkeys(KEYS, 1)
