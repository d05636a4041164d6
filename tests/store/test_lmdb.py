"""Tests of the LMDB store on a real disk: durability, rejected stores, and disk errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest

from dstash.errors import (
    CorruptStore,
    DiskFull,
    ForeignStore,
    StoreError,
    StoreFailed,
    StoreInUse,
)
from dstash.limits import MIB, PARTITIONS
from dstash.store import disk_space
from dstash.store.crashes import FAULT_FILE, last_fault, note_faults
from dstash.store.directory import DATA_FILE, LOCK_FILE, set_aside
from dstash.store.environment.opening import LOCK_FILE_BYTES
from dstash.store.interface import Identity, Write
from dstash.store.lmdb import LmdbStore
from dstash.store.record import head, keyspace
from dstash.store.sealing import seal
from dstash.types import Durability
from dstash.version import pack, stamp_at
from tests.harness.process import expirable
from tests.harness.small_disks import SmallDisk

SPACE = keyspace(b"index", frozenset(range(PARTITIONS)))
NOW = 1_000_000
ROOT = Path(__file__).resolve().parent.parent.parent


def entries(*names: str, value: bytes = b"\x01", stamp: int = 1) -> list[tuple[bytes, bytes]]:
    keys = [name.encode() for name in names]
    return seal(SPACE, keys, head(pack(stamp_at(stamp), b"abcd")), [value] * len(keys))


def put(store: LmdbStore, *names: str, value: bytes = b"\x01", stamp: int = 1) -> None:
    store.commit([Write(entries(*names, value=value, stamp=stamp), NOW, stamp_at(stamp))])


def held(store: LmdbStore) -> dict[bytes, bytes]:
    with store.snapshot() as snapshot:
        return dict(snapshot.walk(b"", b"\xff" * 511))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(folder: Path) -> Iterator[LmdbStore]:
    store = LmdbStore(folder)
    yield store
    store.close()


def elsewhere(code: str, *arguments: object, ok: bool = True) -> str:
    """Run code in a separate process; return its output."""
    done = subprocess.run(
        expirable([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode == 0) == ok, done.stderr
    return done.stdout


class TestDurability:
    def test_ceiling_survives_a_restart(self, folder: Path) -> None:
        store = LmdbStore(folder)
        put(store, "k", value=b"\x02", stamp=5)
        store.close()
        store = LmdbStore(folder)
        [(place, older)] = entries("k", stamp=4)
        version = pack(stamp_at(4), b"abcd")
        [merged] = store.commit([Write([(place, older)], NOW, stamp_at(4), version=version)])
        assert merged.superseded == [(0, pack(stamp_at(5), b"abcd"))]
        assert held(store)[place][-1:] == b"\x02"
        store.close()

    def test_commits_survive_a_restart(self, folder: Path) -> None:
        store = LmdbStore(folder)
        put(store, "a", "b")
        store.adopt(Identity("cluster", "peer", "ignored"))
        store.mark(b"topology", b"content")
        kept, store_id, records = held(store), store.store_id, store.stats().records
        store.close()
        store = LmdbStore(folder)
        assert held(store) == kept == dict(entries("a", "b"))
        assert store.store_id == store_id
        assert store.identity == Identity("cluster", "peer", store_id)
        assert store.marked(b"topology") == b"content"
        assert store.marked(b"other") is None
        assert store.high_water == stamp_at(1)
        assert store.stats().records == records == 2
        store.close()

    @pytest.mark.parametrize("durability", Durability)
    def test_commits_survive_a_killed_process(self, folder: Path, durability: Durability) -> None:
        elsewhere(
            """
            import os, sys
            from pathlib import Path
            from dstash.store.lmdb import LmdbStore
            from dstash.types import Durability
            from tests.store.test_lmdb import put
            store = LmdbStore(Path(sys.argv[1]), Durability(sys.argv[2]))
            put(store, "a", "b")
            put(store, "b", stamp=2)
            os.kill(os.getpid(), 9)
            """,
            folder,
            durability,
            ok=False,
        )
        store = LmdbStore(folder)
        assert held(store) == dict(entries("a") + entries("b", stamp=2))
        assert store.high_water == stamp_at(2)
        store.close()

    def test_store_opens_after_its_creation_was_interrupted(self, folder: Path) -> None:
        elsewhere(
            """
            import os, sys
            from pathlib import Path
            from dstash.store.lmdb import LmdbStore
            LmdbStore._read_meta = lambda *args: os.kill(os.getpid(), 9)
            LmdbStore(Path(sys.argv[1]))
            """,
            folder,
            ok=False,
        )
        assert (folder / DATA_FILE).exists()
        store = LmdbStore(folder)
        put(store, "a")
        store.close()

    def test_each_store_has_a_unique_id(self, tmp_path: Path) -> None:
        stores = [LmdbStore(tmp_path / name) for name in "ab"]
        assert stores[0].store_id != stores[1].store_id
        for store in stores:
            store.close()

    def test_commit_is_atomic(self, store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
        put(store, "a")
        before, high = held(store), store.high_water
        bad = [*entries("b", stamp=5), (b"x" * 600, b"too long a key for LMDB")]
        with pytest.raises(StoreError):
            store.commit([Write(bad, NOW, stamp_at(5))])
        assert held(store) == before
        assert store.high_water == high
        put(store, "b")  # a refused write does not close it

    def test_marks_commit_together_with_records(self, store: LmdbStore) -> None:
        store.commit([Write(entries("a"), NOW, marks=[(b"name", b"content")])])
        assert store.marked(b"name") == b"content"

    def test_drops_remove_only_the_named_version(self, store: LmdbStore) -> None:
        put(store, "a", "b")
        put(store, "b", stamp=2)
        drops = [(key, record[:28]) for key, record in entries("a", "b")]
        store.commit([Write([], NOW, drops=drops)])
        assert held(store) == dict(entries("b", stamp=2))


class TestReading:
    def test_snapshot_does_not_see_later_writes(self, store: LmdbStore) -> None:
        put(store, "a")
        [(key, old)] = entries("a")
        with store.snapshot() as snapshot:
            thread = threading.Thread(target=put, args=(store, "a"), kwargs={"stamp": 2})
            thread.start()
            thread.join()
            assert snapshot.get(key) == old
        with store.snapshot() as snapshot:
            assert snapshot.get(key) != old

    def test_walk_is_from_begin_to_before_end(self, store: LmdbStore) -> None:
        put(store, *map(str, range(50)))
        everything = sorted(dict(entries(*map(str, range(50)))))
        with store.snapshot() as snapshot:
            for begin, end in ((0, 50), (10, 20), (49, 49)):
                upper = everything[end] if end < 50 else b"\xff" * 9
                found = [key for key, _ in snapshot.walk(everything[begin], upper)]
                assert found == everything[begin:end]
            assert list(snapshot.walk(b"\xff" * 9, b"\xff" * 10)) == []


class TestMapGrowth:
    @pytest.fixture(autouse=True)
    def small_map(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk_space, "_FIRST_MAP", MIB // 4)

    def test_map_grows_and_stays_grown(self, folder: Path) -> None:
        store = LmdbStore(folder)
        for number in range(40):
            put(store, f"key-{number}", value=b"\xc5\xff\xf0" + bytes(0xFFF0))
        assert store.stats().map_bytes > 2 * MIB
        kept = held(store)
        store.close()
        store = LmdbStore(folder)
        assert held(store) == kept
        put(store, "more")
        store.close()

    def test_commit_may_be_larger_than_the_map(self, store: LmdbStore) -> None:
        put(store, *map(str, range(300)), value=b"\xc5\xff\xf0" + bytes(0xFFF0))
        assert store.stats().records == 300

    def test_marks_grow_the_map(self, store: LmdbStore) -> None:
        for number in range(8):
            store.mark(b"large-%d" % number, bytes(MIB // 8))
        assert store.marked(b"large-0") == bytes(MIB // 8)

    def test_identity_grows_the_map(self, store: LmdbStore) -> None:
        store.adopt(Identity("c" * MIB, "peer", ""))
        assert store.identity is not None

    def test_map_grows_under_readers_and_writers(self, store: LmdbStore) -> None:
        """The map moves in memory when it grows, while no reader may use it."""
        stop = threading.Event()
        failures: list[BaseException] = []

        def until_stopped(action: object) -> None:
            try:
                while not stop.is_set():
                    action()  # type: ignore[operator]
            except BaseException as error:
                failures.append(error)

        def mark() -> None:
            store.mark(b"name", os.urandom(3000))

        actions = [mark, lambda: held(store), lambda: store.marked(b"name"), store.stats]
        threads = [threading.Thread(target=until_stopped, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        for number in range(120):
            put(store, f"key-{number}", value=b"\xc5\xff\xf0" + bytes(0xFFF0))
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert store.stats().map_bytes > 8 * MIB


class TestRefusals:
    def test_directory_in_use_names_the_process(self, store: LmdbStore, folder: Path) -> None:
        said = elsewhere(
            """
            import sys
            from pathlib import Path
            from dstash.errors import StoreInUse
            from dstash.store.lmdb import LmdbStore
            try:
                LmdbStore(Path(sys.argv[1]))
            except StoreInUse as error:
                print(error)
            """,
            folder,
        )
        assert said.strip() == f"data directory {folder} is in use by process {os.getpid()}"

    def test_directory_in_use_by_this_process_is_refused(
        self, store: LmdbStore, folder: Path
    ) -> None:
        with pytest.raises(StoreInUse):
            LmdbStore(folder)
        put(store, "a")  # the current holder is not disturbed

    def test_lock_file_of_an_ended_process_does_not_block(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "LOCK").write_text("1")
        LmdbStore(folder).close()

    def test_store_of_another_cluster_or_peer_is_refused(self, folder: Path) -> None:
        store = LmdbStore(folder)
        store.adopt(Identity("cluster", "peer", ""))
        store.adopt(Identity("cluster", "peer", "other"))
        for other in (Identity("other", "peer", ""), Identity("cluster", "other", "")):
            with pytest.raises(ForeignStore, match="belongs to peer 'peer' of cluster 'cluster'"):
                store.adopt(other)
        store.close()

    @pytest.mark.parametrize("content", [b"", b"garbage" * 10_000, bytes(100_000)])
    def test_open_fails_on_an_emptied_or_overwritten_data_file(
        self, folder: Path, content: bytes
    ) -> None:
        LmdbStore(folder).close()
        (folder / DATA_FILE).write_bytes(content)
        with pytest.raises(CorruptStore):
            LmdbStore(folder)
        (folder / DATA_FILE).unlink()
        (folder / "lock.mdb").unlink()
        LmdbStore(folder).close()  # the refusal left no lock

    @pytest.mark.parametrize(
        ("records", "size"), [(500, 0x1000), (20_000, 0x0010)], ids=["large", "small"]
    )
    def test_open_fails_on_a_truncated_data_file(
        self, folder: Path, records: int, size: int
    ) -> None:
        store = LmdbStore(folder)
        value = b"\xc5" + size.to_bytes(2, "big") + bytes(size)
        for begin in range(0, records, 500):
            put(store, *map(str, range(begin, begin + 500)), value=value)
        store.close()
        half = (folder / DATA_FILE).stat().st_size // 2
        os.truncate(folder / DATA_FILE, half)
        for _ in range(2):
            with pytest.raises(CorruptStore, match="was truncated"):
                LmdbStore(folder)
            assert (folder / DATA_FILE).stat().st_size == half

    def test_store_with_a_corrupt_page_is_not_opened_again(self, folder: Path) -> None:
        store = LmdbStore(folder)
        names = [f"key-{number}" for number in range(500)]
        put(store, *names, value=b"\xc4\x64" + bytes(100))
        store.close()
        said = elsewhere(
            """
            import sys
            from pathlib import Path
            from dstash.errors import CorruptStore
            from dstash.store.directory import DATA_FILE
            from dstash.store.lmdb import LmdbStore
            from tests.store.test_lmdb import entries, put

            folder = Path(sys.argv[1])
            store = LmdbStore(folder)
            content = bytearray((folder / DATA_FILE).read_bytes())
            for begin in range(2 * 4096, len(content), 4096):
                if b"key-" in content[begin : begin + 4096]:
                    content[begin : begin + 4096] = bytes(4096)
            (folder / DATA_FILE).open("r+b").write(content)
            try:
                with store.snapshot() as snapshot:
                    snapshot.get(entries("key-7")[0][0])
            except CorruptStore as error:
                print(error)
            print(store.check_writable())
            """,
            folder,
        )
        assert "LMDB cannot read it" in said.splitlines()[0]
        assert said.splitlines()[1] != "None", "it takes no more writes"
        with pytest.raises(CorruptStore, match="found by an earlier process"):
            LmdbStore(folder)
        aside, _ = set_aside(folder)
        assert (aside / DATA_FILE).exists()
        LmdbStore(folder).close()

    def test_open_fails_on_a_foreign_database(self, folder: Path) -> None:
        folder.mkdir()
        lmdb.open(os.fspath(folder)).close()
        with pytest.raises(CorruptStore, match="not a dstash store"):
            LmdbStore(folder)

    def test_store_of_later_format_is_refused(self, folder: Path) -> None:
        LmdbStore(folder).close()
        with lmdb.open(os.fspath(folder), max_dbs=8) as env, env.begin(write=True) as transaction:
            transaction.put(b"format", b"99", db=env.open_db(b"meta", transaction))
        with pytest.raises(StoreError, match="format 99; this version reads 1"):
            LmdbStore(folder)

    def test_open_fails_where_directory_is_a_file(self, folder: Path) -> None:
        folder.write_text("not a directory")
        for path in (folder, folder / "below"):
            with pytest.raises(StoreError, match="cannot create data directory"):
                LmdbStore(path)

    def test_open_fails_on_a_read_only_directory(self, folder: Path) -> None:
        folder.mkdir()
        folder.chmod(0o555)
        for parent in folder.parents:  # from the root to the directories of pytest
            if parent.stat().st_mode & 0o1000:
                break
            parent.chmod(0o755)
        said = elsewhere(
            """
            import os, sys
            from pathlib import Path
            from dstash.errors import StoreError
            from dstash.store.lmdb import LmdbStore
            if os.geteuid() == 0:  # no mode restricts root
                os.setgid(65534), os.setuid(65534)
            try:
                LmdbStore(Path(sys.argv[1]))
            except StoreError as error:
                print(error)
            """,
            folder,
        )
        folder.chmod(0o700)
        assert said.startswith("data directory ")
        assert "cannot be read and written by this user; set data_dir to " in said


FULL_DISK = """
import json, os, resource, sys
from pathlib import Path
from dstash.errors import DiskFull, DStashError
from dstash.store.lmdb import LmdbStore
from tests.store.test_lmdb import held, put

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
store = LmdbStore(folder)
put(store, "first")
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
stored, errors = ["first"], []
for number in range(400):
    try:
        put(store, f"key-{number}", value=b"\\xc5\\xff\\xf0" + bytes(0xfff0))
        stored.append(f"key-{number}")
    except DStashError as error:
        errors.append([type(error).__name__, str(error), error.retryable])
        if len(errors) > 3:
            break
readable = len(held(store))
print(json.dumps([stored, errors, readable, store.check_writable()]))
sys.stdout.flush()
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if store.check_writable() is None:
        put(store, "after")
store.close()
store = LmdbStore(folder)
assert len(held(store)) >= readable
store.close()
"""


class TestFullDisk:
    def check(self, said: str) -> None:
        stored, errors, readable, broken = json.loads(said.splitlines()[-1])
        assert errors, "the disk never became full"
        assert readable == len(stored), "what was acked is read, and nothing else is"
        assert {name for name, _, _ in errors} == {DiskFull.__name__}
        assert "no room left on the disk" in errors[0][1]
        assert broken is None, "room may be made: the store is not closed"

    def test_full_file_system_is_an_error_and_reads_still_work(self, tmp_path: Path) -> None:
        if shutil.which("unshare") is None or os.geteuid() != 0:
            pytest.skip("a small file system takes the right to mount one")
        mount = f'mount -t tmpfs -o size=4m tmpfs {tmp_path} && exec "$@"'
        command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "data"), "0"]
        done = subprocess.run(
            expirable(["unshare", "-m", "sh", "-c", mount, "sh", *command]),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        self.check(done.stdout)

    def test_file_size_limit_is_an_error_and_reads_still_work(self, tmp_path: Path) -> None:
        self.check(elsewhere(FULL_DISK, tmp_path / "data", 4 * MIB))


class TestExternalChanges:
    def test_truncated_file_closes_the_store(self, folder: Path) -> None:
        store = LmdbStore(folder)
        put(store, *(f"key-{number}" for number in range(2000)), value=b"\xc4\xff" + bytes(255))
        store.tend()
        assert store.check_writable() is None
        before = (folder / DATA_FILE).stat().st_size
        os.truncate(folder / DATA_FILE, before // 2)
        store.tend()
        broken = store.check_writable()
        assert broken == (
            f"{folder / DATA_FILE} was truncated while the peer ran: from {before} bytes "
            f"to {before // 2}"
        )
        os.truncate(folder / DATA_FILE, before)  # as a late commit would
        with suppress(lmdb.Error):
            store.close()
        with pytest.raises(CorruptStore, match="was truncated while the peer ran"):
            LmdbStore(folder)

    def test_removed_or_replaced_file_closes_the_store(self, folder: Path) -> None:
        store = LmdbStore(folder)
        put(store, "k")
        (folder / DATA_FILE).rename(folder / "elsewhere")
        store.tend()
        assert "was moved, removed or replaced while the peer ran" in (store.check_writable() or "")
        with pytest.raises(StoreFailed, match="was moved"):
            put(store, "l")
        store.close()

    def test_file_is_checked_after_a_fault_of_the_last_process(self, folder: Path) -> None:
        store = LmdbStore(folder)
        put(store, *(f"key-{number}" for number in range(2000)), value=b"\xc4\xff" + bytes(255))
        store.close()
        (folder / FAULT_FILE).write_bytes(b"Fatal Python error: Bus error\n\nCurrent thread\0\0")
        LmdbStore(folder).close()  # it is intact
        size = (folder / DATA_FILE).stat().st_size
        with (folder / DATA_FILE).open("r+b") as file:
            file.seek(size // 2)
            file.write(bytes(size - size // 2))
        with pytest.raises(
            CorruptStore, match=r"ended the last process of this peer \(Bus error\)"
        ):
            LmdbStore(folder)

    def test_left_by_names_a_process_that_did_not_close_the_store(self, folder: Path) -> None:
        elsewhere(
            """
            import os, sys
            from pathlib import Path
            from dstash.store.lmdb import LmdbStore
            store = LmdbStore(Path(sys.argv[1]))
            print(os.getpid(), flush=True)
            os._exit(0)
            """,
            folder,
        )
        store = LmdbStore(folder)
        assert store.left_by.isdigit()
        store.close()
        store = LmdbStore(folder)
        assert store.left_by == ""
        store.close()

    def test_fault_is_noted_for_the_next_process(self, folder: Path) -> None:
        folder.mkdir()
        elsewhere(
            """
            import os, signal, sys
            from pathlib import Path
            from dstash.store.crashes import note_faults
            note_faults(Path(sys.argv[1]))
            os.kill(os.getpid(), signal.SIGBUS)
            """,
            folder,
            ok=False,
        )
        assert last_fault(folder) == "Bus error"
        note_faults(folder)()
        assert last_fault(folder) == ""


def test_lock_file_has_its_blocks_before_a_reader_needs_them(store: LmdbStore) -> None:
    found = (store.directory / LOCK_FILE).stat()
    assert found.st_blocks * 512 >= found.st_size == LOCK_FILE_BYTES


def test_full_disk_releases_the_reserve_only_for_deletes(tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "disk", 8 * MIB) as disk:
        done = subprocess.run(
            expirable([*disk.command, sys.executable, "-c", GIVES_UP, str(disk.folder)]),
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "DiskFull, kept; deleted, given up; made again"


GIVES_UP = """
import sys, time
from pathlib import Path
from dstash.errors import DiskFull
from dstash.limits import MIB
from dstash.store.interface import Write
from dstash.store.lmdb import LmdbStore
from dstash.store.reserve import RESERVE_FILE
from dstash.types import RecordFlag
from tests.store.test_lmdb import NOW, SPACE, head, pack, seal, stamp_at

folder = Path(sys.argv[1]) / "data"
store = LmdbStore(folder, reserve=MIB)
assert (folder / RESERVE_FILE).exists()
names = [b"key-%d" % number for number in range(3000)]
live = seal(SPACE, names, head(pack(stamp_at(1), b"abcd")), [b"\\x01"] * len(names))
store.commit([Write(live, NOW, stamp_at(1))])
with (folder / "BALLAST").open("wb", buffering=0) as ballast:
    try:
        while ballast.write(bytes(4096)):
            pass
    except OSError:
        pass
value = b"\\xc6\\0\\x0f\\xff\\xfb" + bytes(MIB - 5)
large = seal(SPACE, [b"large"], head(pack(stamp_at(2), b"abcd")), [value])
said = []
try:
    store.commit([Write(large, NOW, stamp_at(2))])
except DiskFull:
    said.append("DiskFull, kept" if (folder / RESERVE_FILE).exists() else "given up for a put")
for stamp in range(3, 40):  # until the free pages of the file are used up
    version = head(pack(stamp_at(stamp), b"abcd"), RecordFlag.TOMBSTONE)
    more = [b"other-%d-%d" % (stamp, number) for number in range(1000)]
    tombstones = seal(SPACE, more, version, [b""] * len(more))
    store.commit([Write(tombstones, NOW, stamp_at(stamp), may_spend_reserve=True)])
    if not (folder / RESERVE_FILE).exists():
        said.append("deleted, given up")
        break
(folder / "BALLAST").unlink()
store._space._allocate_at = 0
store.tend()
said.append("made again" if (folder / RESERVE_FILE).exists() else "not made")
print("; ".join(said))
"""
