"""Peers that share their stores: unsynced starts, compactions, readers that stand still."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dstash.store.directory import UNSYNCED_FILE
from dstash.store.sharing.heartbeat import TICKET, SeenHeartbeat
from tests.harness.peers import PATIENCE, Peer, Peers
from tests.harness.process import expirable
from tests.harness.waiting import wait_until

KEYS = [f"key-{number}" for number in range(300)]

_READER = """
import lmdb, os, sys
environment = lmdb.open(sys.argv[1], readonly=True, create=False, max_dbs=8)
reading = environment.begin()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@contextmanager
def _shared(folder: Path, *options: str) -> Iterator[Peers]:
    with Peers.local(folder, *options) as peers:
        peers.environ["DSTASH_SHARE_READS"] = "true"
        peers.form("a", "b", "c")
        yield peers


def _shows_ticket(peer: Peer) -> bool:
    return SeenHeartbeat(peer.data).words[TICKET] != 0


def test_store_that_may_lack_writes_is_not_shared_until_it_has_them(tmp_path: Path) -> None:
    with _shared(tmp_path, "--durability", "none") as peers:
        client = peers.client(write="all")
        client.batch_put("i", dict.fromkeys(KEYS, 1))
        wait_until(lambda: _shows_ticket(peers["a"]), PATIENCE, "a shares its store")
        note = (peers["a"].data / UNSYNCED_FILE).read_bytes()
        peers["a"].kill()
        assert _shows_ticket(peers["a"]), "its last ticket is left behind"
        (peers["a"].data / UNSYNCED_FILE).write_bytes(note[::-1])  # the id of another boot
        for name in "bc":
            peers[name].freeze()
        peers["a"].start()
        wait_until(lambda: peers["a"].page("/readyz") != {}, PATIENCE, "a answers")
        assert not _shows_ticket(peers["a"])
        for name in "bc":
            peers[name].thaw()
        while not peers["a"].is_ready():
            shown = _shows_ticket(peers["a"])
            assert not shown or peers["a"].is_ready(), "it was shared before it had its data"
        wait_until(lambda: _shows_ticket(peers["a"]), PATIENCE, "a shares its store again")
        assert peers["a"].stop() == 0
        assert not _shows_ticket(peers["a"])


def test_store_that_is_compacted_is_read_with_all_later_writes(tmp_path: Path) -> None:
    with _shared(tmp_path) as peers:
        client = peers.client(read="one", write="all")
        client.batch_put("i", dict.fromkeys(KEYS, 0))
        for number in range(1, 4):
            for peer in "abc":
                client.admin.compact(peer)
            wait_until(
                lambda number=number: all(
                    peer.page("/status")["compaction"]["ended"] >= number
                    for peer in peers.all.values()
                ),
                PATIENCE,
                "all peers are compacted",
            )
            for key in KEYS:
                client.put("i", key, number)
                assert client.lookup("i", key) == number

        def is_local() -> bool:
            before = sum(peer.lookups() for peer in peers.all.values())
            assert {client.lookup("i", key) for key in KEYS} == {number}
            return sum(peer.lookups() for peer in peers.all.values()) == before

        wait_until(is_local, PATIENCE, "reads are local again")


def test_snapshot_that_a_process_holds_is_shown(tmp_path: Path) -> None:
    with _shared(tmp_path) as peers:
        client = peers.client(write="all")
        client.put("i", "key", 0)

        def oldest() -> float:
            return float(peers["a"].page("/status")["readers"]["oldest_s"])

        command = expirable([sys.executable, "-c", _READER, str(peers["a"].data)])
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            reader = int(process.stdout.readline())
            client.put("i", "key", 1)
            wait_until(lambda: oldest() > 0, PATIENCE, "the snapshot is shown")
            os.kill(reader, signal.SIGKILL)
        wait_until(lambda: oldest() == 0, PATIENCE, "what the process held is freed")
        assert not peers["a"].page("/status")["compaction"]["ended"], "a compaction has freed it"
