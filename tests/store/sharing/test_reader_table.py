"""The age of a snapshot counts from when it was first seen with commits after it."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from dstash.store.interface import Write
from dstash.store.lmdb import LmdbStore
from dstash.store.sharing.reader_table import Holder, Readers, ReaderTable


def _lines(*holders: Holder) -> str:
    rows = [f"{process:>10} {thread} {number or '-'}\n" for process, thread, number in holders]
    return "".join(["    pid     thread     txnid\n", *rows])


def test_reader_of_the_newest_snapshot_has_no_age() -> None:
    table = ReaderTable()
    idle, current = Holder(1, "a", 0), Holder(2, "b", 9)
    for now in (0, 100):
        assert table.take(_lines(idle, current), 9, now) == Readers(2)
    assert table.take("(no active readers)\n", 9, 200) == Readers()


def test_age_of_a_snapshot_counts_until_it_is_released() -> None:
    table = ReaderTable()
    old, moving = Holder(1, "a", 5), Holder(2, "b", 8)
    assert table.take(_lines(old), 6, 10) == Readers(1, 0, 1)
    found = table.take(_lines(old, moving), 9, 45)
    assert found == Readers(2, 35, 1)
    assert found.is_too_old
    # The thread reads again, in a later snapshot that has become old since.
    assert table.take(_lines(old._replace(transaction=9)), 10, 50) == Readers(1, 0, 1)


def test_table_of_a_store_shows_a_reader_that_stands_still(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    environment = store._env  # a test must not open the file twice in this process
    table = ReaderTable()
    with environment.begin():
        table.take(*store.readers(), 0)
        store.commit([Write([], 0, marks=[(b"any", b"1")])])
        assert isinstance(environment, lmdb.Environment)
        found = table.take(*store.readers(), 1), table.take(*store.readers(), 3)
    assert [reader.oldest_s for reader in found] == [0, 2]
    assert found[1].process == os.getpid()
    assert table.take(*store.readers(), 4).oldest_s == 0
    store.close()
