"""Corrupt, full and failing disks of real peers; each test checks the invariants at its end.

``SOAK=10`` makes the runs ten times as long (``make soak``).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dstash import Client
from dstash.errors import DStashError, StoreFailed
from dstash.limits import MIB
from dstash.store.crashes import last_fault
from tests.harness.invariants import check_invariants
from tests.harness.load import Load
from tests.harness.peers import PATIENCE, Peer, Peers
from tests.harness.waiting import wait_until

SOAK = int(os.environ.get("SOAK", "1"))
HASTY = {
    "DSTASH_COMPARE_INTERVAL": "1",
    "DSTASH_GC_INTERVAL": "2",
    "DSTASH_GC_GRACE": "1",
}
VALUES = {f"key-{number}": f"<marked-{number:04}>" for number in range(200)}

pytestmark = [pytest.mark.timeout(300 * SOAK), pytest.mark.usefixtures("no_leaks")]


def trio(folder: Path) -> Peers:
    """Return three peers with short intervals, not started."""
    peers = Peers.local(folder)
    peers.environ |= HASTY
    return peers


def more(load: Load, operations: int) -> None:
    """Wait until this many more calls have returned."""
    goal = load.operations + operations
    wait_until(lambda: load.operations >= goal or load.errors, 60, f"{operations} more calls")
    assert not load.errors, load.errors


def cut_off(file: Path) -> None:
    """Truncate a file to half its size."""
    os.truncate(file, file.stat().st_size // 2)


def zeroed(file: Path) -> None:
    """Overwrite a file with zeros."""
    file.write_bytes(bytes(file.stat().st_size))


def test_truncated_or_zeroed_file_is_set_aside_on_request(
    tmp_path: Path,
) -> None:
    with trio(tmp_path) as peers:
        peers.form("a", "b", "c")
        for harm in (cut_off, zeroed) * SOAK:
            with Load(peers.client()) as load:
                more(load, 50)
                lose_a_file(peers["c"], harm)
                more(load, 50)
            check_invariants(peers, load)


def test_truncated_file_stops_running_peer_with_one_line(
    tmp_path: Path,
) -> None:
    with Peers.local(tmp_path) as peers:  # with default intervals: no task reads the file meanwhile
        peers.form("a", "b", "c")
        peers.client().batch_put("i", VALUES, write="all").raise_for_failures()
        peer = peers["c"]
        cut_off(peer.data / "data.mdb")
        code = peer.wait_end()
        if code == -signal.SIGBUS:  # a mark was written before the file was checked
            assert last_fault(peer.data) == "Bus error", "the next process reads the fault"
        else:
            assert code == StoreFailed.exit_code
            last = peer.log.read_text().splitlines()[-1]
            assert last.startswith("dstash-peer: ")
            assert "data.mdb was truncated while the peer ran: from " in last
        start_as_the_setting_says(peer)


def test_truncated_file_is_streamed_again_under_load_if_configured(
    tmp_path: Path,
) -> None:
    with trio(tmp_path) as peers:
        peers.form("a", "b", "c")
        client = peers.client()
        some = {f"k-{number}": bytes(2000) for number in range(3000)}
        client.batch_put("i", some, write="all").raise_for_failures()
        peer = peers["c"]
        with Load(peers.client()) as load:
            more(load, 50)
            near = peers.client(zone="zone-c", read="one")
            os.truncate(peer.data / "data.mdb", 64 * 1024)
            while peer.runs():
                with suppress(DStashError):
                    near.batch_lookup("i", list(some), timeout=5)
            start_as_the_setting_says(peer)
            more(load, 50)
        check_invariants(peers, load)
        assert client.batch_lookup("i", list(some), read="all") == some


def test_corrupt_keys_stop_a_peer_and_are_streamed_again_if_configured(tmp_path: Path) -> None:
    with trio(tmp_path) as peers:
        peers.form("a", "b", "c")
        client = peers.client()
        client.batch_put("i", VALUES, write="all").raise_for_failures()
        peer = peers["c"]
        with Load(peers.client()) as load:
            more(load, 50)
        flip(peer.data / "data.mdb", rb"\x01ikey-\d+")
        client.admin.repair()
        assert peer.wait_end() == StoreFailed.exit_code
        last = peer.log.read_text().splitlines()[-1]
        assert last.startswith("dstash-peer: ")
        assert "of a record is corrupt, so records are missing under other keys" in last
        assert client.batch_lookup("i", list(VALUES)) == VALUES, "the others have them"
        start_as_the_setting_says(peer, "of a record is corrupt")
        check_invariants(peers, load)
        assert client.batch_lookup("i", list(VALUES), read="all") == VALUES
        assert dict(peers.client(zone="zone-c", read="one").items("i")) == VALUES


def start_as_the_setting_says(peer: Peer, text: str = "data.mdb was truncated") -> None:
    """Start a peer whose store is corrupt: it stops at once, or sets the store aside."""
    peer.environ["DSTASH_ON_CORRUPT"] = "stop"
    peer.start()
    assert peer.wait_end() == 1
    last = peer.log.read_text().splitlines()[-1]
    assert text in last
    assert "start with on_corrupt = 'resync'" in last
    peer.environ["DSTASH_ON_CORRUPT"] = "resync"
    peer.start()
    peer.wait_ready()


def lose_a_file(peer: Peer, harm: Callable[[Path], None]) -> None:
    """Corrupt the file of a stopped peer: it refuses to start, and then may start empty."""
    asides = set(peer.data.glob("set-aside-*"))
    peer.kill()
    harm(peer.data / "data.mdb")
    size = (peer.data / "data.mdb").stat().st_size
    peer.environ["DSTASH_ON_CORRUPT"] = "stop"
    peer.start()
    assert peer.wait_end() == 1
    last = peer.log.read_text().splitlines()[-1]
    assert last.startswith("dstash-peer: "), last
    assert "start with on_corrupt = 'resync'" in last
    assert (peer.data / "data.mdb").stat().st_size == size, "nothing is touched without leave"
    peer.environ["DSTASH_ON_CORRUPT"] = "resync"
    peer.start()
    peer.wait_ready()
    (aside,) = set(peer.data.glob("set-aside-*")) - asides
    assert (aside / "data.mdb").stat().st_size == size, "renamed, not deleted"


def test_flipped_bits_are_repaired_counted_and_logged(
    tmp_path: Path,
) -> None:
    with trio(tmp_path) as peers:
        peers.form("a", "b", "c")
        client = peers.client()
        client.batch_put("i", VALUES, write="all").raise_for_failures()
        for _ in range(SOAK):
            with Load(peers.client()) as before:
                more(before, 50)
            check_invariants(peers, before)
            flip(peers["c"].data / "data.mdb")
            with Load(peers.client()) as load:
                more(load, 50)
                near = peers.client(zone="zone-c", read="one")
                check_every_way_to_read(near)
                client.admin.repair()
                wait_until(
                    lambda: repaired(peers["c"]) >= len(VALUES), PATIENCE, "all are repaired"
                )
                more(load, 20)
            check_invariants(peers, load)
            check_every_way_to_read(peers.client(zone="zone-c", read="one"))
        peers["c"].wait_logged("corrupt record on disk")
        peers["c"].wait_logged("corrupt record repaired")


def flip(file: Path, pattern: bytes = rb"<marked-\d{4}>") -> None:
    """Flip the last bit of everything that matches a pattern in the file of a running peer.

    No client may write meanwhile: if a page moved between reading and flipping, another page would
    be corrupted, perhaps a page of the tree.
    """
    content = file.read_bytes()
    places = [found.end() - 1 for found in re.finditer(pattern, content)]
    assert len(places) >= len(VALUES)
    with file.open("r+b") as handle:
        for place in places:
            handle.seek(place)
            handle.write(bytes([content[place] ^ 1]))


def check_every_way_to_read(client: Client) -> None:
    """Read all marked values one by one, in a batch, and in a scan."""
    some = dict(list(VALUES.items())[:5])
    assert {key: client.lookup("i", key) for key in some} == some
    assert dict(client.items("i")) == VALUES
    assert client.count("i") == len(VALUES)
    assert client.batch_lookup("i", list(VALUES)) == VALUES


def repaired(peer: Peer) -> int:
    """Return how many corrupt records a peer has repaired."""
    status = peer.page("/status")  # empty while the peer does not answer
    return int(status.get("maintenance", {}).get("corrupt_repaired", 0))


def small_disk(folder: Path, size: int) -> list[str]:
    """Return the start of a command line that mounts a small file system at ``folder``.

    Without the permission to mount, it limits the size of files instead.
    """
    for unshare in (["unshare", "-m"], ["unshare", "--map-root-user", "-m"]):
        mount = f'mount -t tmpfs -o size={size} tmpfs "{folder}" && exec "$@"'
        command = [*unshare, "sh", "-c", mount, "sh"]
        if (
            shutil.which("unshare")
            and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode
        ):
            return command
    return ["prlimit", f"--fsize={size}"]


def test_full_disk_refuses_only_writes_and_recovers(
    tmp_path: Path,
) -> None:
    peers = Peers.local(tmp_path)
    peers.environ |= HASTY | {"DSTASH_DISK_RESERVE": str(6 * MIB)}
    with peers:
        peer = peers.make("a", peers.options)
        peers.all["a"] = peer
        peer.data.mkdir()
        peer.before = small_disk(peer.data, 40 * MIB)
        peer.start()
        peer.wait_ready()
        client = peers.client()
        expected = fill_up(client)
        gone = list(expected)[::2]
        client.batch_delete("i", gone).raise_for_failures()
        kept = {key: value for key, value in expected.items() if key not in set(gone)}
        assert client.batch_lookup("i", list(expected)) == kept, "I1, I3: reads and deletes succeed"
        wait_until(lambda: can_put(client), PATIENCE, "there is room again")
        assert client.batch_lookup("i", list(expected)) == kept
        assert peer.runs(), "I6"
        assert "Traceback" not in peer.log.read_text(), "I6"


def fill_up(client: Client) -> dict[str, bytes]:
    """Put until the disk is full; return the acked values."""
    acked: dict[str, bytes] = {}
    refusals: list[str] = []
    for number in range(2000):
        value = number.to_bytes(4, "big") + bytes(60_000)
        try:
            client.put("i", f"key-{number}", value)
        except DStashError as error:
            refusals.append(str(error))
            break
        acked[f"key-{number}"] = value
    assert re.search("disk is full|no room left on the disk", refusals[0])
    return acked


def can_put(client: Client) -> bool:
    """Whether a put succeeds."""
    try:
        client.put("i", "another", bytes(1000), timeout=5)
    except DStashError:
        return False
    return True


def test_failed_fsync_stops_the_peer_without_acks(tmp_path: Path) -> None:
    with trio(tmp_path) as peers:
        peers.form("a", "b", "c")
        for _ in range(SOAK):
            fail_and_come_back(peers, "b")


def fail_and_come_back(peers: Peers, name: str) -> None:
    """Run one peer on a disk whose syncs fail."""
    peer = peers[name]
    assert peer.stop() == 0
    peer.before = [sys.executable, "-m", "tests.harness.failing_disk"]
    peer.start()
    peer.wait_ready()
    with Load(peers.client()) as load:
        more(load, 50)
        peer.signal(signal.SIGUSR1)
        assert peer.wait_end() == StoreFailed.exit_code
        last = peer.log.read_text().splitlines()[-1]
        assert last.startswith("dstash-peer: "), last
        assert "the disk failed" in last
        more(load, 50)
        peer.before = []
        peer.start()
        peer.wait_ready()
        more(load, 20)
    check_invariants(peers, load)
