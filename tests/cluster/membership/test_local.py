"""Tests of local membership: replaced files, truncated files, and locks."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from dstash.cluster.membership.interface import NOTHING, StoredTopology
from dstash.cluster.membership.local import topology_file
from dstash.cluster.membership.local.lock import LockFile, read_if_held
from dstash.cluster.membership.local.membership import LocalMembership, poll_interval
from dstash.cluster.membership.local.topology_file import TopologyFile
from dstash.cluster.topology.announcement import decode, encode
from dstash.cluster.topology.names import safe_name
from dstash.cluster.topology.topology import Member, Topology
from dstash.errors import MembershipError, MembershipUnreachable, PeerIdInUse
from tests.harness.membership import ROOT, announcement
from tests.harness.waiting import PATIENCE, wait_until

TOPOLOGY = Topology(cluster="c", cluster_id="id", epoch=1)


@pytest.fixture
def membership(tmp_path: Path) -> Iterator[LocalMembership]:
    with closing(LocalMembership(tmp_path, "c")) as membership:
        yield membership


def run(script: str, *arguments: object) -> str:
    """Run a script in another process and return the last line that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


class TestDirectory:
    #: Root has all permissions, so the test needs another user.
    OPEN = """
import os, sys
from pathlib import Path
from dstash.cluster.membership.local.membership import LocalMembership
from dstash.errors import MembershipError
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
try:
    LocalMembership(Path(sys.argv[1]), "c")
except MembershipError as error:
    print(error)
"""

    def test_open_fails_where_directory_is_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.touch()
        with pytest.raises(MembershipError, match=f"cannot use {path}: Not a directory"):
            LocalMembership(path, "c")

    @pytest.mark.parametrize("mode", [0o555, 0o000])
    @pytest.mark.parametrize("inside", ["", "c/new"])
    def test_open_fails_without_permission(self, open_to_all: Path, mode: int, inside: str) -> None:
        with closing(LocalMembership(open_to_all, "c")):
            pass
        target = open_to_all / inside
        target.mkdir(exist_ok=True)
        target.chmod(mode)
        line = run(self.OPEN, target)
        assert "Permission denied" in line
        assert line.count(str(target)) == 1

    @pytest.fixture
    def open_to_all(self) -> Iterator[Path]:
        """A directory that every user may enter; ``tmp_path`` is private."""
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)  # noqa: S103
            yield Path(folder)
            for path, _, _ in os.walk(folder):
                os.chmod(path, 0o700)

    def test_calls_fail_after_directory_is_removed(
        self, tmp_path: Path, membership: LocalMembership
    ) -> None:
        subprocess.run(["rm", "-rf", tmp_path / "c"], check=True)
        with pytest.raises(MembershipUnreachable, match=r"peers.*: No such file"):
            membership.alive()
        with pytest.raises(MembershipUnreachable, match=r"c: No such file"):
            membership.read()
        with pytest.raises(MembershipUnreachable, match=r"c: No such file"):
            membership.compare_and_set(TOPOLOGY, NOTHING)
        membership.announce(announcement("p1"))
        assert list(membership.alive()) == ["p1"]

    def test_patient_open_succeeds_once_directory_is_usable(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.touch()
        with closing(LocalMembership(path, "c", patient=True)) as membership:
            for call in (
                membership.read,
                membership.alive,
                lambda: membership.watch(1),
                lambda: membership.announce(announcement("p1")),
            ):
                with pytest.raises(MembershipUnreachable, match="Not a directory"):
                    call()
            path.unlink()
            membership.announce(announcement("p1"))
            assert list(membership.alive()) == ["p1"]
            assert membership.read().topology is None


class TestLostDirectory:
    """An announced peer whose directory was deleted or replaced."""

    @pytest.fixture
    def peer(self, membership: LocalMembership) -> LocalMembership:
        membership.announce(announcement("p1"))
        assert membership.compare_and_set(TOPOLOGY, NOTHING)
        membership.watch(0)
        return membership

    def looks_again(self, peer: LocalMembership, folder: Path) -> None:
        """Check that the peer reports a change, and that its lock is in the current directory."""
        assert peer.watch(10)
        assert read_if_held(folder / "c" / "peers" / "p1") == encode(announcement("p1"))
        assert list(peer.alive()) == ["p1"]
        peer.watch(0)
        assert not peer.watch(0.3)

    def test_deleted_directory_is_recreated(self, peer: LocalMembership, tmp_path: Path) -> None:
        subprocess.run(["rm", "-rf", tmp_path / "c"], check=True)
        self.looks_again(peer, tmp_path)
        assert peer.read() == StoredTopology(None, NOTHING)

    def test_directory_moved_away_and_back_is_used_again(
        self, peer: LocalMembership, tmp_path: Path
    ) -> None:
        (tmp_path / "c").rename(tmp_path / "away")
        self.looks_again(peer, tmp_path)
        assert read_if_held(tmp_path / "away" / "peers" / "p1") is None
        (tmp_path / "c").rename(tmp_path / "other")
        (tmp_path / "away").rename(tmp_path / "c")
        self.looks_again(peer, tmp_path)
        assert peer.read().topology == TOPOLOGY

    def test_directory_replaced_by_old_copy_is_used(
        self, peer: LocalMembership, tmp_path: Path
    ) -> None:
        shutil.copytree(tmp_path / "c", tmp_path / "copy")
        assert advance(peer)
        peer.watch(0)
        (tmp_path / "c").rename(tmp_path / "away")
        (tmp_path / "copy").rename(tmp_path / "c")
        self.looks_again(peer, tmp_path)
        assert peer.read().topology == TOPOLOGY

    def test_directory_replaced_by_a_file_is_used_again_later(
        self, peer: LocalMembership, tmp_path: Path
    ) -> None:
        (tmp_path / "c").rename(tmp_path / "away")
        (tmp_path / "c").touch()
        for _ in range(3):
            with pytest.raises(MembershipUnreachable, match="directory"):
                peer.watch(10)
        assert peer.is_announced()
        (tmp_path / "c").unlink()
        self.looks_again(peer, tmp_path)

    def test_replaced_directory_with_another_holder_is_reported(
        self, peer: LocalMembership, tmp_path: Path
    ) -> None:
        (tmp_path / "c").rename(tmp_path / "away")
        with closing(LocalMembership(tmp_path, "c")) as other:
            other.announce(announcement("p1", 5001))
            with pytest.raises(PeerIdInUse, match="5001"):
                peer.watch(10)
            assert other.alive() == {"p1": announcement("p1", 5001)}
        self.looks_again(peer, tmp_path)

    def test_directory_loss_releases_named_locks(
        self, peer: LocalMembership, tmp_path: Path
    ) -> None:
        assert peer.acquire("conductor")
        (tmp_path / "c").rename(tmp_path / "away")
        peer.watch(10)
        with closing(LocalMembership(tmp_path, "c")) as other:
            other.announce(announcement("p2"))
            assert other.acquire("conductor")
        assert peer.acquire("conductor")

    def test_directory_is_not_recreated_without_announcement(self, tmp_path: Path) -> None:
        with closing(LocalMembership(tmp_path, "c")) as client:
            (tmp_path / "c").rename(tmp_path / "away")
            with pytest.raises(MembershipUnreachable):
                client.watch(10)
            assert not (tmp_path / "c").exists()


def epoch(membership: LocalMembership) -> int:
    """Return the epoch of the stored topology, 0 if there is none."""
    found = membership.read().topology
    return found.epoch if found else 0


def advance(membership: LocalMembership) -> bool:
    found = membership.read()
    assert found.topology is not None
    return membership.compare_and_set(found.topology.next(), found.token)


class TestTopologyFile:
    def test_membership_works_after_fork(self, tmp_path: Path) -> None:
        script = """
import os, sys
from pathlib import Path
from dstash.cluster.membership.local.membership import LocalMembership
from dstash.cluster.topology.topology import Member, Topology
inherited = LocalMembership(Path(sys.argv[1]), "c")
inherited.compare_and_set(Topology("c", "id", 1), 0)
if os.fork() == 0:
    fresh = LocalMembership(Path(sys.argv[1]), "c")
    print(inherited.read() == fresh.read(), inherited.read().topology.epoch, flush=True)
    os._exit(0)
os.wait()
"""
        assert run(script, tmp_path) == "True 1"

    @pytest.mark.parametrize(
        "corruption",
        [
            lambda content: b"",
            lambda content: content[:-1],
            lambda content: content[: len(content) // 2],
            lambda content: content[:10],
            lambda content: bytes(len(content)),
            lambda content: os.urandom(5000),
            lambda content: content.replace(b'"epoch": 1', b'"epoch": 9'),
            lambda content: content + b" ",
        ],
    )
    def test_corrupt_topology_is_reported_and_can_be_replaced(
        self, membership: LocalMembership, tmp_path: Path, corruption: Callable[[bytes], bytes]
    ) -> None:
        assert membership.compare_and_set(TOPOLOGY, NOTHING)
        membership.watch(0)
        file = tmp_path / "c" / "topology.json"
        before = membership.read().token
        file.write_bytes(corruption(file.read_bytes()))
        assert membership.watch(10)
        stored = membership.read()
        assert stored == StoredTopology(None, stored.token, f"{file} is corrupt")
        assert stored.token not in (NOTHING, before)
        assert not membership.compare_and_set(TOPOLOGY, NOTHING)
        assert not membership.compare_and_set(TOPOLOGY, before)
        assert membership.compare_and_set(TOPOLOGY.next(), stored.token)
        assert membership.read().topology == TOPOLOGY.next()

    def test_truncation_during_reads_crashes_no_reader(
        self, membership: LocalMembership, tmp_path: Path
    ) -> None:
        """With a mapped file, this process would end with SIGBUS."""
        members = tuple(Member(f"p{n}", f"tcp://p:{n}", f"s{n}", "z") for n in range(1000))
        large = replace(TOPOLOGY, members=members)
        assert membership.compare_and_set(large, NOTHING)
        is_over = threading.Event()

        def look() -> set[int]:
            seen = set()
            with closing(LocalMembership(tmp_path, "c")) as reader:
                while not is_over.is_set():
                    found = reader.read().topology
                    seen.add(len(found.members) if found else 0)
            return seen

        with ThreadPoolExecutor(2) as pool:
            looking = [pool.submit(look) for _ in range(2)]
            for _ in range(20):
                os.truncate(tmp_path / "c" / "topology.json", 5000)
                time.sleep(0.01)
                assert membership.compare_and_set(large, membership.read().token)
                time.sleep(0.01)
            is_over.set()
            assert set().union(*(future.result() for future in looking)) <= {0, 1000}

    def test_topology_file_is_not_written_in_place(
        self, membership: LocalMembership, tmp_path: Path
    ) -> None:
        assert membership.compare_and_set(TOPOLOGY, NOTHING)
        with (tmp_path / "c" / "topology.json").open("rb") as before:
            assert advance(membership)
            assert b'"epoch": 1' in before.read()
        assert not (tmp_path / "c" / "topology.new").exists()

    def test_write_on_a_full_disk_keeps_the_old_topology(
        self, membership: LocalMembership, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert membership.compare_and_set(TOPOLOGY, NOTHING)

        def refuse(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(topology_file.os, "fsync", refuse)
            with pytest.raises(MembershipUnreachable, match="No space left"):
                advance(membership)
        assert membership.read().topology == TOPOLOGY
        assert advance(membership)

    def test_write_follows_a_directory_that_is_moved(
        self, membership: LocalMembership, tmp_path: Path
    ) -> None:
        assert membership.compare_and_set(TOPOLOGY, NOTHING)
        stopped = LockFile.take(tmp_path / "c" / "topology.writing")
        assert stopped is not None
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(advance, membership)
            time.sleep(0.2)  # until it waits for the lock, which is not observable
            (tmp_path / "c").rename(tmp_path / "away")
            with closing(LocalMembership(tmp_path, "c")) as other:
                stopped.release()
                assert writing.result()
                assert other.read().topology is None
        assert b'"epoch": 2' in (tmp_path / "away" / "topology.json").read_bytes()

    def test_write_times_out_behind_a_stopped_writer(
        self, membership: LocalMembership, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(topology_file, "_WRITE_LOCK_TIMEOUT_S", 0.1)
        stopped = LockFile.take(tmp_path / "c" / "topology.writing")
        assert stopped is not None
        with pytest.raises(MembershipUnreachable, match="is held for more than"):
            membership.compare_and_set(TOPOLOGY, NOTHING)
        stopped.release()
        assert membership.compare_and_set(TOPOLOGY, NOTHING)

    def test_topology_survives_a_killed_writer(self, tmp_path: Path) -> None:
        script = """
import sys, itertools
from pathlib import Path
from dstash.cluster.membership.local.membership import LocalMembership
from dstash.cluster.topology.topology import Member, Topology
membership = LocalMembership(Path(sys.argv[1]), "c")
print("up", flush=True)
for epoch in itertools.count(1):
    membership.compare_and_set(Topology("c", "id", epoch), membership.read().token)
"""
        for _ in range(3):
            command = [sys.executable, "-c", script, str(tmp_path)]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"up\n"
                with closing(LocalMembership(tmp_path, "c")) as membership:
                    before = epoch(membership)
                    wait_until(lambda: epoch(membership) > before + 3, PATIENCE, "it writes")  # noqa: B023
                    writer.kill()
                    writer.wait()
                    assert advance(membership)

    def test_read_fails_on_content_that_is_not_a_topology(
        self, membership: LocalMembership, tmp_path: Path
    ) -> None:
        TopologyFile(tmp_path / "c").create(b"{}")
        with pytest.raises(MembershipError, match=r"topology\.json: not a topology"):
            membership.read()


class TestLegacyTopology:
    @pytest.fixture
    def legacy(self, tmp_path: Path) -> Path:
        (tmp_path / "c").mkdir()
        path = tmp_path / "c" / "topology.lmdb"
        with (
            lmdb.open(str(path), subdir=False) as environment,
            environment.begin(write=True) as transaction,
        ):
            transaction.put(b"topology", (7).to_bytes(8, "big") + TOPOLOGY.encode())
        return path

    def test_legacy_topology_is_migrated_once(self, legacy: Path, tmp_path: Path) -> None:
        with closing(LocalMembership(tmp_path, "c")) as membership:
            assert membership.read().topology == TOPOLOGY
            assert advance(membership)
        with closing(LocalMembership(tmp_path, "c")) as membership:
            assert membership.read().topology == TOPOLOGY.next()
        assert not legacy.exists()
        assert legacy.with_name("topology.lmdb.taken-over").exists()

    def test_legacy_topology_is_migrated_once_by_concurrent_processes(
        self, legacy: Path, tmp_path: Path
    ) -> None:
        def read() -> Topology | None:
            with closing(LocalMembership(tmp_path, "c")) as membership:
                return membership.read().topology

        with ThreadPoolExecutor(4) as pool:
            found = [future.result() for future in [pool.submit(read) for _ in range(4)]]
        assert found == [TOPOLOGY] * 4

    @pytest.mark.parametrize("size", [0, 100, 8192])
    def test_truncated_legacy_file_crashes_no_process(
        self, legacy: Path, tmp_path: Path, size: int
    ) -> None:
        os.truncate(legacy, size)
        with closing(LocalMembership(tmp_path, "c")) as membership:
            assert membership.read() == StoredTopology(None, NOTHING)
        assert legacy.with_name("topology.lmdb.unreadable").exists()


class TestPeerFiles:
    def test_locks_of_ended_processes_do_not_count(
        self, membership: LocalMembership, tmp_path: Path
    ) -> None:
        (tmp_path / "c" / "peers" / "old").write_bytes(encode(announcement("old")))
        (tmp_path / "c" / "peers" / "empty").touch()
        assert membership.alive() == {}
        membership.announce(announcement("old", 5002))
        assert membership.alive() == {"old": announcement("old", 5002)}

    def test_half_written_announcements_do_not_count(
        self, membership: LocalMembership, tmp_path: Path
    ) -> None:
        lock = LockFile.take(tmp_path / "c" / "peers" / "p1")
        assert lock is not None
        whole = encode(announcement("p1"))
        for length in range(0, len(whole), 7):
            lock.write(whole[:length])
            assert decode(read_if_held(tmp_path / "c" / "peers" / "p1")) is None
        assert membership.alive() == {}
        lock.write(whole)
        assert list(membership.alive()) == ["p1"]
        lock.release()

    def test_lock_is_acquired_while_many_processes_poll(self, tmp_path: Path) -> None:
        is_over = threading.Event()

        def look() -> int:
            looks = 0
            with closing(LocalMembership(tmp_path, "c")) as watcher:
                while not is_over.is_set():
                    watcher.alive()
                    looks += 1
            return looks

        with ThreadPoolExecutor(3) as pool, closing(LocalMembership(tmp_path, "c")) as peer:
            looking = [pool.submit(look) for _ in range(3)]
            for port in range(1, 200):
                peer.announce(announcement("p1", port))
                assert peer.alive() == {"p1": announcement("p1", port)}
                peer.resign()
            is_over.set()
            assert min(future.result() for future in looking) > 10

    def test_lock_is_acquired_while_another_process_tests_it(
        self, membership: LocalMembership, tmp_path: Path
    ) -> None:
        handle = os.open(tmp_path / "c" / "peers" / "p1", os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, os.close, [handle])
        timer.start()
        membership.announce(announcement("p1"))
        timer.join()
        assert list(membership.alive()) == ["p1"]

    def test_polls_are_slower_once_nothing_changes(self) -> None:
        assert [poll_interval(seconds) for seconds in (0.0, 9.9, 10.0, 1e9)] == [0.1, 0.1, 1.0, 1.0]

    def test_second_membership_in_same_process_is_refused(
        self, membership: LocalMembership, tmp_path: Path
    ) -> None:
        membership.announce(announcement("p1"))
        with closing(LocalMembership(tmp_path, "c")) as second:
            with pytest.raises(PeerIdInUse):
                second.announce(announcement("p1"))
            second.announce(announcement("p2"))
            assert sorted(second.alive()) == ["p1", "p2"]


class TestNames:
    def test_file_names_are_distinct_and_inside_the_directory(self) -> None:
        names = ["a", ".", "..", "...", "%2E", ".a", "%2Ea", "a/b", "a%2Fb", "a b", "ä", "A", "/"]
        files = [safe_name(name) for name in names]
        assert len(set(files)) == len(names)
        assert not [file for file in files if "/" in file or file.startswith(".")]

    def test_file_names_are_limited_in_length(self) -> None:
        assert safe_name("x" * 240) == "x" * 240
        for name in ("", "x" * 241, "ä" * 41):
            with pytest.raises(MembershipError, match="allowed are 1 to 240"):
                safe_name(name)


class TestAnnouncement:
    def test_announcement_round_trip(self) -> None:
        assert decode(encode(announcement("pä"))) == announcement("pä")

    @pytest.mark.parametrize(
        "garbage", [None, b"", b"null", b"[]", b"{}", b'{"peer": 1}', b'{"peer": "p"}', b"\xff"]
    )
    def test_garbage_is_not_an_announcement(self, garbage: bytes | None) -> None:
        assert decode(garbage) is None

    def test_fields_of_a_later_version_are_ignored(self) -> None:
        more = encode(announcement("p"))[:-1] + b', "colour": "red"}'
        assert decode(more) == announcement("p")
