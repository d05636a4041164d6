"""Full disks of real peers: reads and deletes, reports, and convergence of replicas."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dstash import Client
from dstash.limits import MIB
from dstash.store.interface import DiskState
from dstash.store.reserve import RESERVE_FILE
from tests.harness.peers import PATIENCE, Peers
from tests.harness.replicas import differing
from tests.harness.small_disks import SmallDisk
from tests.harness.waiting import wait_until

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_leaks")]

RESERVE = 3 * MIB
REPAIR_TIMEOUT_S = 60.0
KEYS = 2000


class Trio:
    """Three peers, each on its own small disk."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.peers = stack.enter_context(Peers.local(folder))
        self.peers.environ["DSTASH_DISK_RESERVE"] = str(RESERVE)
        self.disks: dict[str, SmallDisk] = {}
        for name in "abc":
            options = ["--zone", f"zone-{name}", "--min-peers", "3"]
            peer = self.peers.make(name, [*self.peers.options, *options])
            self.disks[name] = stack.enter_context(SmallDisk(peer.data, 40 * MIB))
            peer.before = self.disks[name].command
            self.peers.all[name] = peer
            peer.start()
        for peer in self.peers.all.values():
            peer.wait_ready()

    def disk_says(self, name: str) -> str:
        """Return the state of the disk that a peer reports."""
        return str(self.peers[name].page("/status").get("disk"))


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    with ExitStack() as stack:
        yield Trio(tmp_path, stack)


class Work:
    """Puts, deletes and look-ups of one thread, which knows the possible values of each key."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.rng = random.Random(1)
        self.refused = 0
        self.size = 500
        #: The possible values of each key: several if a put was refused or its outcome is unknown.
        self.allowed: dict[str, set[str | None]] = {}
        first = {f"key-{number}": f"first-{number}" for number in range(KEYS)}
        client.batch_put("i", first, write="all").raise_for_failures()
        self.allowed = {key: {value} for key, value in first.items()}

    def some(self) -> list[str]:
        """Return some keys."""
        return self.rng.sample(sorted(self.allowed), 20)

    def go_on(self, seconds: float) -> None:
        """Make calls for some time. Puts may be refused, deletes and look-ups must not be."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.put()
            gone = self.some()
            self.client.batch_delete("i", gone).raise_for_failures()
            self.allowed |= {key: {None} for key in gone}
            self.look_up(self.some())

    def put(self) -> None:
        """Put some keys."""
        # Each is larger than its predecessor, so the free pages of the file run out.
        self.size += 5
        batch = {key: f"{self.rng.randrange(1 << 30):0{self.size}}" for key in self.some()}
        result = self.client.batch_put("i", batch, on_error="return")
        for key, value in batch.items():
            if key in result.outcomes:
                self.refused += 1
                self.allowed[key].add(value)
            else:
                self.allowed[key] = {value}

    def look_up(self, keys: list[str]) -> None:
        """Look up keys and compare the values."""
        found = self.client.batch_lookup("i", keys)
        wrong = {key: found.get(key) for key in keys if found.get(key) not in self.allowed[key]}
        assert not wrong


@pytest.mark.parametrize("full", ["c", "bc"])
def test_full_disks_serve_reads_and_deletes_and_converge_later(trio: Trio, full: str) -> None:
    client = trio.peers.client(timeout=10)
    work = Work(client)
    for name in full:
        trio.disks[name].fill()
        assert trio.disks[name].free() == 0
    work.go_on(8)
    assert bool(work.refused) is (full == "bc"), "two of three disks take no puts"
    for name in full:
        assert trio.disk_says(name) == DiskState.FULL.value
        assert not (trio.disks[name].inside / RESERVE_FILE).exists(), "it was given up"
        trio.disks[name].fill()
    use_up(trio, client, full)
    work.look_up(list(work.allowed))
    for name in full:
        trio.disks[name].make_room()
    began = time.monotonic()
    wait_until(
        lambda: not differing(trio.peers, client), REPAIR_TIMEOUT_S, "replicas are equal (I4)"
    )
    assert time.monotonic() - began < REPAIR_TIMEOUT_S
    work.look_up(list(work.allowed))
    work.go_on(1)
    for name in full:
        check_log(trio, name)


def use_up(trio: Trio, client: Client, full: str) -> None:
    """Delete until the reserves are used up; check what the peers report."""
    keys = [f"other-{number}" for number in range(20_000)]
    for begin in range(0, len(keys), 500):
        result = client.batch_delete("i", keys[begin : begin + 500], on_error="return")
        if result.outcomes:
            assert len(full) > 1, "a quorum has room"
            reasons = {str(reason) for reason in result.reasons}
            assert all("no room left on the disk" in reason for reason in reasons), reasons
        says = [trio.disk_says(name) for name in full]
        says += [trio.peers[name].page("/readyz").get("why", "") for name in full]
        if set(says) == {DiskState.EXHAUSTED.value}:
            return
    raise AssertionError(f"the disks are not used up: {says}")


def check_log(trio: Trio, name: str) -> None:
    """Check that the log reports each change of state, and no more."""
    peer, disk = trio.peers[name], trio.disks[name]
    wait_until(lambda: trio.disk_says(name) == "", PATIENCE, "there is room")
    wait_until(lambda: (disk.inside / RESERVE_FILE).exists(), PATIENCE, "it has a reserve again")
    wait_until(
        lambda: "there is room on the disk again" in peer.log.read_text(), PATIENCE, "the end"
    )
    said = peer.log.read_text()
    assert DiskState.FULL.value in said
    assert "its reserve was released" in said
    lines = [line for line in said.splitlines() if "disk" in line]
    assert len(lines) < 25, "it is said when it begins and when it ends"
    assert "Traceback" not in said


def test_peer_starts_reads_and_deletes_on_a_full_disk(trio: Trio) -> None:
    client = trio.peers.client(timeout=10)
    work = Work(client)
    peer, disk = trio.peers["c"], trio.disks["c"]
    disk.fill()
    peer.kill()
    peer.start()
    tight = {DiskState.SCARCE.value, DiskState.FULL.value}
    wait_until(lambda: trio.disk_says("c") in tight, PATIENCE, "it has started")
    near = trio.peers.client(zone="zone-c", read="one")
    assert near.lookup("i", "key-7") == "first-7"
    client.batch_delete("i", ["key-7"], write="all").raise_for_failures()
    assert near.lookup("i", "key-7") is None
    work.allowed["key-7"] = {None}
    work.look_up(["key-7"])
