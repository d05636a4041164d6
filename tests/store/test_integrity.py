"""Tests of the integrity check of a store."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import lmdb
import pytest

from dstash.errors import CorruptStore, StoreError, StoreInUse
from dstash.limits import PARTITIONS
from dstash.store.directory import DAMAGED_FILE, DATA_FILE
from dstash.store.interface import Write
from dstash.store.lmdb import LmdbStore
from dstash.store.offline.integrity import can_be_read, reading
from dstash.store.offline.scrub import scrub
from dstash.store.record import head, keyspace
from dstash.store.sealing import seal
from dstash.version import pack, stamp_at


def program(folder: Path, name: str, ends: str) -> str:
    """Return a program that ends with this status, regardless of its arguments."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{ends}\n")
    path.chmod(0o755)
    return str(path)


def test_check_accepts_a_sound_store(tmp_path: Path) -> None:
    LmdbStore(tmp_path / "store").close()
    assert can_be_read(tmp_path / "store")


@pytest.mark.parametrize("ends", ["exit 3", "kill -ABRT $$", "kill -BUS $$", "kill -SEGV $$"])
def test_check_ends_at_a_corrupt_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, "python", ends))
    assert not can_be_read(tmp_path)


@pytest.mark.parametrize("ends", ["exit 1", "exit 127", "kill -KILL $$"])
def test_other_exit_status_gives_no_result_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    folder = tmp_path / "store"
    LmdbStore(folder).close()
    size = (folder / DATA_FILE).stat().st_size - 4096
    os.truncate(folder / DATA_FILE, size)
    monkeypatch.setattr(sys, "executable", program(tmp_path, "python", ends))
    with pytest.raises(StoreError, match="cannot check whether") as caught:
        LmdbStore(folder)
    assert not isinstance(caught.value, CorruptStore)  # which may be moved away
    assert (folder / DATA_FILE).stat().st_size == size


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """The data file of a store with one record, alone in a directory that is read-only."""
    store = LmdbStore(tmp_path / "store")
    space = keyspace(b"i", frozenset(range(PARTITIONS)))
    record = seal(space, [b"k"], head(pack(stamp_at(1), b"abcd")), [b"v"])
    store.commit([Write(record, 1000, stamp_at(1))])
    store.close()
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(tmp_path / "store" / DATA_FILE, folder)
    (folder / DATA_FILE).chmod(0o400)
    folder.chmod(0o500)
    yield folder
    folder.chmod(0o700)


def test_read_only_copy_is_read_and_not_changed(copy: Path) -> None:
    before = (copy / DATA_FILE).read_bytes()
    with reading(copy) as store:
        *_, found = scrub(store)
    assert (found.records, found.indexes, found.corrupt) == (1, {"i": 1}, [])
    assert [file.name for file in copy.iterdir()] == [DATA_FILE]
    assert (copy / DATA_FILE).read_bytes() == before


def test_store_in_use_is_not_read_and_one_that_is_read_cannot_be_used(tmp_path: Path) -> None:
    with closing(LmdbStore(tmp_path)), pytest.raises(StoreInUse, match=f"process {os.getpid()}"):
        reading(tmp_path).__enter__()
    with reading(tmp_path), pytest.raises(StoreInUse):
        LmdbStore(tmp_path)
    LmdbStore(tmp_path).close()


def test_store_that_is_none_or_corrupt_is_refused(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path)).close()
    with pytest.raises(StoreError, match="is not a dstash store"):
        reading(tmp_path).__enter__()
    (tmp_path / DATA_FILE).write_bytes(bytes(8192))
    with pytest.raises(CorruptStore, match="cannot be read by LMDB"):
        reading(tmp_path).__enter__()
    (tmp_path / DAMAGED_FILE).write_text("it was truncated")
    with pytest.raises(CorruptStore, match="it was truncated"):
        reading(tmp_path).__enter__()
