"""Scans, counts and exports of real peers, of which one missed writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.devcluster import clean_environment
from tests.harness.peers import Peers
from tests.harness.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("no_leaks")

DSTASH = str(Path(sys.executable).parent / "dstash")


@pytest.fixture
def slow_to_heal(tmp_path: Path) -> Iterator[Peers]:
    """Three peers without hints that need hours to repair missed writes."""
    with Peers.local(tmp_path) as peers:
        peers.environ = {"DSTASH_HINT_LIMIT": "0", "DSTASH_REPAIR_RATE": "1000"}
        peers.form("a", "b", "c")
        yield peers


def dstash(peers: Peers, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command, which prefers peer ``c``."""
    addresses = ",".join(peer.address for peer in peers.all.values())
    return subprocess.run(
        [DSTASH, "--peers", addresses, *arguments],
        env=clean_environment() | {"DSTASH_ZONE": "zone-c"},
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
    )


def exported(file: Path) -> list[str]:
    """Return the keys of a file of JSON lines."""
    return [json.loads(line)["key"] for line in file.read_text().splitlines()]


def test_scan_finds_keys_missed_by_a_peer(slow_to_heal: Peers, tmp_path: Path) -> None:
    peers, file = slow_to_heal, tmp_path / "out.jsonl"
    client = peers.client()
    peers["c"].kill()
    keys = [f"key-{number}" for number in range(40_000)]
    client.batch_put("i", dict.fromkeys(keys, 0)).raise_for_failures()
    peers["c"].start()
    peers["c"].wait_ready()
    run = dstash(peers, "health")
    assert run.returncode == 0
    assert re.match(r"healthy, some keys of [\d,]+ partitions still missing on c\b", run.stdout)
    assert int(dstash(peers, "--read", "one", "count", "i").stdout) < len(keys) / 2
    run = dstash(peers, "count", "i", "key-1")
    assert (run.returncode, int(run.stdout)) == (0, 11_111)
    run = dstash(peers, "--read", "all", "count", "i")
    assert (run.returncode, int(run.stdout)) == (0, len(keys))
    run = dstash(peers, "export", "i", str(file))
    assert run.returncode == 0, run.stderr
    found = exported(file)
    assert len(found) == len(keys)
    assert set(found) == set(keys)


def test_export_with_missed_puts_is_complete_or_fails(slow_to_heal: Peers, tmp_path: Path) -> None:
    peers, file = slow_to_heal, tmp_path / "out.jsonl"
    client = peers.client()
    peers["c"].kill()
    keys = [f"key-{number}" for number in range(20_000)]
    client.batch_put("i", dict.fromkeys(keys, 0)).raise_for_failures()
    peers["c"].start()
    peers["c"].wait_ready()
    peers["a"].kill()
    peers["b"].kill()
    run = dstash(peers, "--timeout", "5", "export", "i", str(file))
    assert run.returncode == 5, run.stderr
    assert not file.exists()
    peers["b"].start()
    peers["b"].wait_ready()
    run = dstash(peers, "export", "i", str(file))
    assert run.returncode == 0, run.stderr
    assert sorted(exported(file)) == sorted(keys)


def test_scan_returns_no_key_whose_delete_a_peer_missed(
    slow_to_heal: Peers, tmp_path: Path
) -> None:
    peers, file = slow_to_heal, tmp_path / "out.jsonl"
    client = peers.client()
    keys = [f"key-{number}" for number in range(20_000)]
    client.batch_put("i", dict.fromkeys(keys, 0), write="all").raise_for_failures()
    peers["c"].kill()
    client.batch_delete("i", keys[:8000]).raise_for_failures()
    peers["c"].start()
    peers["c"].wait_ready()
    assert int(dstash(peers, "--read", "one", "count", "i").stdout) > 12_000
    run = dstash(peers, "--output", "json", "backup", "save", str(tmp_path / "backup"))
    assert run.returncode == 0, run.stderr
    saved = json.loads(run.stdout)
    assert (saved["records"], saved["tombstones"]) == (20_000, 8000)
    run = dstash(peers, "export", "i", str(file))
    assert run.returncode == 0, run.stderr
    assert sorted(exported(file)) == sorted(keys[8000:])
    run = dstash(peers, "scan", "i", "--keys")
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.split()) == sorted(keys[8000:])
