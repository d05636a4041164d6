"""Compaction: the store stays the same, becomes smaller, and survives a kill at any moment."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lmdb
import pytest

from dstash.errors import CorruptStore, StoreError, StoreInUse
from dstash.limits import MIB
from dstash.store.directory import COMPACTING, DATA_FILE, LOCK_FILE
from dstash.store.interface import Identity, Write
from dstash.store.lmdb import LmdbStore
from dstash.store.lock import kept_unused
from dstash.store.offline.compaction import compact
from dstash.store.record import head
from dstash.store.sealing import seal
from dstash.version import pack, stamp_at
from tests.harness.process import expirable
from tests.harness.small_disks import SmallDisk
from tests.harness.waiting import wait_until
from tests.store.test_lmdb import NOW, ROOT, SPACE, held, put

COUNT = 20_000
VALUE = b"\xc4\x62" + bytes(98)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "data")


def fill(folder: Path) -> Path:
    """Make a store whose records were written in random order, and partly deleted."""
    store = LmdbStore(folder)
    names = [b"key-%d" % number for number in range(COUNT)]
    random.Random(1).shuffle(names)
    for begin in range(0, COUNT, 1000):
        part, stamp = names[begin : begin + 1000], stamp_at(begin + 1)
        sealed = seal(SPACE, part, head(pack(stamp, b"abcd")), [VALUE] * len(part))
        store.commit([Write(sorted(sealed), NOW, stamp)])
    store.adopt(Identity("cluster", "peer", "ignored"))
    store.mark(b"topology", b"content")
    store.close()
    return folder


def content(folder: Path) -> tuple[object, ...]:
    store = LmdbStore(folder)
    marks = store.marked(b"topology"), store.identity, store.store_id, store.high_water
    records = held(store)
    store.close()
    return marks, records


def is_free(folder: Path) -> bool:
    try:
        with kept_unused(folder):
            return True
    except StoreInUse:
        return False


def test_compacted_store_has_the_same_content_in_a_smaller_file(folder: Path) -> None:
    before = content(folder)
    done = compact(folder)
    assert done.records == COUNT
    assert done.after == (folder / DATA_FILE).stat().st_size < 0.7 * done.before
    assert done.after / COUNT < 230
    assert content(folder) == before
    assert not (folder / COMPACTING).exists()


def test_compacted_store_takes_writes(folder: Path) -> None:
    compact(folder)
    store = LmdbStore(folder)
    put(store, "new", *(f"more-{number}" for number in range(5000)), stamp=COUNT + 5)
    assert store.stats().records == COUNT + 5001
    store.close()
    compact(folder)
    store = LmdbStore(folder)
    assert store.stats().records == COUNT + 5001
    store.close()


def test_compaction_that_is_killed_leaves_a_whole_store(folder: Path, tmp_path: Path) -> None:
    before = content(folder)
    code = "import sys; from pathlib import Path; from dstash.store.offline.compaction import "
    code += "compact; print('begins', flush=True); compact(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code]
    ended = 0
    for pause in range(12):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        with subprocess.Popen(
            expirable([*command, str(copy)]), cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(pause / 20)  # at another moment each time
            ended += process.poll() is not None
            process.send_signal(signal.SIGKILL)
        # A process that it was about to start has its lock until that process has begun.
        wait_until(partial(is_free, copy), 10, "the lock is free")
        assert content(copy) == before
        assert not (copy / COMPACTING).exists()
        shutil.rmtree(copy)
    assert ended < 12


def test_error_in_the_middle_leaves_the_old_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(folder)

    def fail(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact(folder, fail)
    assert not (folder / COMPACTING).exists()
    assert content(folder) == before


def test_remains_of_an_earlier_compaction_are_replaced(folder: Path) -> None:
    before = content(folder)
    (folder / COMPACTING).mkdir()
    (folder / COMPACTING / DATA_FILE).write_bytes(b"half")
    compact(folder)
    assert not (folder / COMPACTING).exists()
    assert content(folder) == before


def test_databases_of_other_versions_are_kept(folder: Path) -> None:
    with lmdb.open(os.fspath(folder), max_dbs=8) as environment:
        later = environment.open_db(b"of a later version")
        with environment.begin(later, write=True) as transaction:
            transaction.put(b"key", b"value")
            transaction.drop(environment.open_db(b"promises", transaction))  # of an earlier one
    compact(folder)
    with lmdb.open(os.fspath(folder), max_dbs=8) as environment:
        later = environment.open_db(b"of a later version", create=False)
        with environment.begin(later) as transaction:
            assert transaction.get(b"key") == b"value"
            with pytest.raises(lmdb.NotFoundError):
                environment.open_db(b"promises", transaction, create=False)


def test_file_of_another_program_is_refused(tmp_path: Path) -> None:
    lmdb.open(os.fspath(tmp_path)).close()
    with pytest.raises(StoreError, match="is not a dstash store"):
        compact(tmp_path)


def test_store_in_use_is_not_compacted(folder: Path) -> None:
    store = LmdbStore(folder)
    with pytest.raises(StoreInUse, match=f"in use by process {os.getpid()}"):
        compact(folder)
    store.close()


def test_directory_without_a_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"is not a data directory: it has no {DATA_FILE}"):
        compact(tmp_path)
    assert not any(tmp_path.iterdir())


def test_corrupt_store_is_not_compacted(folder: Path) -> None:
    size = (folder / DATA_FILE).stat().st_size
    with (folder / DATA_FILE).open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    with pytest.raises(CorruptStore, match="cannot be read by LMDB"):
        compact(folder)
    assert (folder / DATA_FILE).stat().st_size == size


def test_too_little_room_is_reported_and_nothing_changed(folder: Path, tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "disk", 12 * MIB) as disk:
        copy = disk.inside / "data"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(LOCK_FILE))
        with pytest.raises(StoreError, match=r"needs \d+ bytes of free space, and \d+ are free"):
            compact(copy)
        assert not (copy / COMPACTING).exists()
        assert content(copy) == content(folder)
