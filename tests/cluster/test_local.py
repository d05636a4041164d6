"""What is the local directory's own: files, locks that are tested, one LMDB handle a process."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from dstash.cluster import local_topology
from dstash.cluster.announcement import decode, encode
from dstash.cluster.local import LocalMembership
from dstash.cluster.local_lock import LockFile, read_if_held
from dstash.cluster.local_topology import TopologyFile
from dstash.cluster.membership import NOTHING
from dstash.cluster.names import safe_name
from dstash.cluster.topology import Topology
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
    #: What root may not do, only another can show.
    OPEN = """
import os, sys
from pathlib import Path
from dstash.cluster.local import LocalMembership
from dstash.errors import MembershipError
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
try:
    LocalMembership(Path(sys.argv[1]), "c")
except MembershipError as error:
    print(error)
"""

    def test_that_is_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.touch()
        with pytest.raises(MembershipError, match=f"cannot use {path}: Not a directory"):
            LocalMembership(path, "c")

    @pytest.mark.parametrize("mode", [0o555, 0o000])
    @pytest.mark.parametrize("inside", ["", "c/new"])
    def test_that_may_not_be_used(self, open_to_all: Path, mode: int, inside: str) -> None:
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
        """A directory with parents that everybody may enter, as those of ``tmp_path`` are not."""
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)  # noqa: S103
            yield Path(folder)
            for path, _, _ in os.walk(folder):
                os.chmod(path, 0o700)

    def test_whose_topology_file_is_garbage(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "topology.lmdb").write_bytes(os.urandom(50_000))
        with pytest.raises(MembershipError, match=r"topology\.lmdb"):
            LocalMembership(tmp_path, "c")

    def test_that_vanished(self, tmp_path: Path, membership: LocalMembership) -> None:
        subprocess.run(["rm", "-rf", tmp_path / "c"], check=True)
        with pytest.raises(MembershipUnreachable, match=r"peers.*: No such file"):
            membership.alive()
        with pytest.raises(MembershipUnreachable, match="No such file"):
            membership.announce(announcement("p1"))


def advance(membership: LocalMembership) -> bool:
    found = membership.read()
    assert found.topology is not None
    return membership.compare_and_set(found.topology.next(), found.token)


class TestTopologyFile:
    def test_is_open_once_in_a_process(self, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(tmp_path)
        first, second = TopologyFile.open(tmp_path / "t"), TopologyFile.open(link / "t")
        assert first is second
        first.close()
        assert second.compare_and_set(TOPOLOGY, NOTHING)
        second.close()
        with pytest.raises(MembershipUnreachable):
            second.read()
        third = TopologyFile.open(tmp_path / "t")
        assert third is not first
        assert third.read().topology == TOPOLOGY
        third.close()

    def test_is_of_no_use_after_a_fork(self, tmp_path: Path) -> None:
        script = """
import os, sys
from pathlib import Path
from dstash.cluster.local import LocalMembership
from dstash.errors import MembershipError
inherited = LocalMembership(Path(sys.argv[1]), "c")
if os.fork() == 0:
    refused = []
    for attempt in (inherited.read, lambda: LocalMembership(Path(sys.argv[1]), "c")):
        try:
            attempt()
        except MembershipError as error:
            refused.append("before a fork" in str(error))
    inherited.close()
    print(refused, flush=True)
    os._exit(0)
os.wait()
inherited.read()
inherited.close()
LocalMembership(Path(sys.argv[1]), "c").close()
"""
        assert run(script, tmp_path) == "[True, True]"

    def test_does_not_wait_for_ever_for_a_writer_that_is_stopped(
        self, membership: LocalMembership, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local_topology, "_WRITE_PATIENCE", 0.1)
        stopped = LockFile.take(tmp_path / "c" / "topology.writing")
        assert stopped is not None
        with pytest.raises(MembershipUnreachable, match="is held for more than"):
            membership.compare_and_set(TOPOLOGY, NOTHING)
        stopped.release()
        assert membership.compare_and_set(TOPOLOGY, NOTHING)

    def test_survives_a_writer_that_is_killed(self, tmp_path: Path) -> None:
        script = """
import sys, itertools
from pathlib import Path
from dstash.cluster.local import LocalMembership
from dstash.cluster.topology import Topology
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
                    before = membership.read().token
                    wait_until(lambda: membership.read().token > before + 3, PATIENCE, "it writes")  # noqa: B023
                    writer.kill()
                    writer.wait()
                    # What the dead one was committing may come to light by the next write.
                    assert advance(membership) or advance(membership)

    def test_holding_garbage(self, membership: LocalMembership, tmp_path: Path) -> None:
        file = TopologyFile.open(tmp_path / "c" / "topology.lmdb")
        with file._transaction(write=True) as transaction:
            transaction.put(b"topology", b"\0" * 7 + b"\1{}")
        file.close()
        with pytest.raises(MembershipError, match=r"topology\.lmdb: not a topology"):
            membership.read()


class TestPeerFiles:
    def test_of_the_dead_do_not_count(self, membership: LocalMembership, tmp_path: Path) -> None:
        (tmp_path / "c" / "peers" / "old").write_bytes(encode(announcement("old")))
        (tmp_path / "c" / "peers" / "empty").touch()
        assert membership.alive() == {}
        membership.announce(announcement("old", 5002))
        assert membership.alive() == {"old": announcement("old", 5002)}

    def test_half_written_do_not_count_yet(
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

    def test_are_taken_while_many_look(self, tmp_path: Path) -> None:
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
            assert min(one.result() for one in looking) > 10

    def test_are_taken_although_somebody_tests_them_just_then(
        self, membership: LocalMembership, tmp_path: Path
    ) -> None:
        handle = os.open(tmp_path / "c" / "peers" / "p1", os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, os.close, [handle])
        timer.start()
        membership.announce(announcement("p1"))
        timer.join()
        assert list(membership.alive()) == ["p1"]

    def test_refuse_a_second_membership_of_the_same_process(
        self, membership: LocalMembership, tmp_path: Path
    ) -> None:
        membership.announce(announcement("p1"))
        with closing(LocalMembership(tmp_path, "c")) as second:
            with pytest.raises(PeerIdInUse):
                second.announce(announcement("p1"))
            second.announce(announcement("p2"))
            assert sorted(second.alive()) == ["p1", "p2"]


class TestNames:
    def test_stay_different_and_inside_the_folder(self) -> None:
        names = ["a", ".", "..", "...", "%2E", ".a", "%2Ea", "a/b", "a%2Fb", "a b", "ä", "A", "/"]
        files = [safe_name(name) for name in names]
        assert len(set(files)) == len(names)
        assert not [file for file in files if "/" in file or file.startswith(".")]

    def test_have_bounds(self) -> None:
        assert safe_name("x" * 240) == "x" * 240
        for name in ("", "x" * 241, "ä" * 41):
            with pytest.raises(MembershipError, match="allowed are 1 to 240"):
                safe_name(name)


class TestAnnouncement:
    def test_survives_its_form(self) -> None:
        assert decode(encode(announcement("pä"))) == announcement("pä")

    @pytest.mark.parametrize(
        "garbage", [None, b"", b"null", b"[]", b"{}", b'{"peer": 1}', b'{"peer": "p"}', b"\xff"]
    )
    def test_is_not_made_of_garbage(self, garbage: bytes | None) -> None:
        assert decode(garbage) is None

    def test_of_a_later_version_may_say_more(self) -> None:
        more = encode(announcement("p"))[:-1] + b', "colour": "red"}'
        assert decode(more) == announcement("p")
