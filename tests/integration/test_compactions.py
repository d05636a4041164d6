"""Compactions of real peers that serve a load and are killed meanwhile.

``SOAK=10`` makes the runs ten times as long (``make soak``).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from dstash.store.directory import COMPACTED, COMPACTING, DATA_FILE
from tests.harness.invariants import check_invariants
from tests.harness.load import Load
from tests.harness.peers import Peers
from tests.integration.test_disks import more

SOAK = int(os.environ.get("SOAK", "1"))

pytestmark = [pytest.mark.timeout(300 * SOAK), pytest.mark.usefixtures("no_leaks")]


def test_peers_killed_during_compactions_lose_nothing(tmp_path: Path) -> None:
    rng = random.Random()
    with Peers.local(tmp_path) as peers:
        peers.form("a", "b", "c")
        client = peers.client()
        some = {f"k-{number}": bytes(500) for number in range(5000)}
        client.batch_put("i", some, write="all").raise_for_failures()
        with Load(peers.client()) as load:
            for name in "abc" * SOAK:
                more(load, 30)
                assert client.admin.compact(name)["compaction"]["running"]
                time.sleep(rng.random() / 5)  # it takes about 0.2 s
                peers[name].kill()
                peers[name].start()
                peers[name].wait_ready()
                assert not {COMPACTING, COMPACTED} & set(os.listdir(peers[name].data))
            more(load, 30)
        check_invariants(peers, load)
        assert client.batch_lookup("i", list(some), read="all") == some


def test_compactions_under_load_lose_nothing(tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("a", "b", "c")
        client = peers.client()
        some = {f"k-{number}": bytes(500) for number in range(5000)}
        client.batch_put("i", some, write="all").raise_for_failures()
        client.batch_delete("i", list(some)[:4000], write="all").raise_for_failures()
        files = {name: (peers[name].data / DATA_FILE).stat().st_ino for name in "abc"}
        with Load(peers.client()) as load:
            for name in "abc" * SOAK:
                client.admin.compact(name)
            while not all(ended(peers, name) for name in "abc"):
                more(load, 10)
            more(load, 30)
        check_invariants(peers, load)
        left = dict(list(some.items())[4000:])
        assert client.batch_lookup("i", list(left), read="all") == left
        for name, file in files.items():
            assert (peers[name].data / DATA_FILE).stat().st_ino != file


def ended(peers: Peers, name: str) -> bool:
    compaction = peers[name].page("/status")["compaction"]
    assert not compaction["why_given_up"]
    return bool(compaction["ended"]) and not compaction["running"]
