"""A lock file that a client keeps open does not harm the data file that a peer opens later."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dstash.store.directory import DATA_FILE, LOCK_FILE
from dstash.store.interface import Write
from dstash.store.lmdb import LmdbStore
from tests.harness.process import expirable

_READER = """
import lmdb, sys
environment = lmdb.open(sys.argv[1], readonly=True, create=False, max_dbs=8)
reading = environment.begin()
print("reads", flush=True)
sys.stdin.read()
"""


@contextmanager
def _reader(folder: Path) -> Iterator[None]:
    """Let another process keep the store open."""
    command = expirable([sys.executable, "-c", _READER, str(folder)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reads\n"
        yield
        process.communicate()


def _store(store: LmdbStore, *numbers: int) -> None:
    for number in numbers:
        store.commit([Write([], 0, marks=[(b"%d" % number, bytes(3000))])])


def _marks(store: LmdbStore, *numbers: int) -> list[bool]:
    return [store.marked(b"%d" % number) is not None for number in numbers]


def test_older_copy_of_the_data_file_replaces_the_lock_file_of_a_reader(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = LmdbStore(folder)
    _store(store, *range(5))
    store.close()
    shutil.copy(folder / DATA_FILE, tmp_path / "old")
    store = LmdbStore(folder)
    with _reader(folder):
        _store(store, *range(5, 12))
        store.close()
        shutil.copy(tmp_path / "old", folder / DATA_FILE)
        for number in range(20, 26):
            store = LmdbStore(folder)
            assert _marks(store, 0, 4, 11) == [True, True, False]
            _store(store, number)
            store.close()
    store = LmdbStore(folder)
    assert all(_marks(store, *range(5), *range(20, 26)))
    store.close()


def test_lock_file_that_fits_is_kept_so_that_its_readers_are_known(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    before = (tmp_path / LOCK_FILE).stat().st_ino
    with _reader(tmp_path):
        _store(store, 1)
        store.close()
        store = LmdbStore(tmp_path)
        _store(store, 2)
        table, _ = store.readers()
        store.close()
    assert (tmp_path / LOCK_FILE).stat().st_ino == before
    assert len(table.splitlines()) > 1
