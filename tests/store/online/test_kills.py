"""Kills in the middle of a compaction, and other processes that read the data file meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from dstash.store.directory import DATA_FILE, LOCK_FILE
from dstash.store.environment.switch import Step
from dstash.store.lmdb import LmdbStore
from dstash.store.offline.compaction import compact
from tests.harness.process import expirable
from tests.store.online.test_compaction import folder, is_clean, made
from tests.store.test_lmdb import ROOT, entries, held, put

__all__ = ["folder", "made"]

#: Compacts a store and kills itself at a step, the third time if it is repeated. Before, it commits
#: at every step that lets it, and prints what is acked.
COMPACTING = """
    import os, signal, sys
    from pathlib import Path
    from dstash.store.environment.switch import Step
    from dstash.store.lmdb import LmdbStore
    from tests.store.online.test_compaction import FREE_STEPS
    from tests.store.test_lmdb import put

    store, last, seen = LmdbStore(Path(sys.argv[1])), Step[sys.argv[2]], []

    def at(step):
        seen.append(step)
        if step is last and (step is not Step.COPYING or seen.count(step) == 3):
            os.kill(os.getpid(), signal.SIGKILL)
        if step in FREE_STEPS:
            name = f"acked-{len(seen)}"
            put(store, name, f"key-{len(seen)}", stamp=2 + len(seen))
            print(name, flush=True)

    store.compact(on_step=at)
    os.kill(os.getpid(), signal.SIGKILL)
"""

#: Reads a store as a client of the machine does: holds a snapshot until a line says to read it.
READING = """
    import sys, lmdb
    environment = lmdb.open(sys.argv[1], readonly=True, create=False, max_dbs=8)
    records = environment.open_db(b"records", create=False)
    with environment.begin(records) as transaction:
        count = transaction.stat(records)["entries"]
        print(count, flush=True)
        sys.stdin.readline()
        print(sum(1 for _ in transaction.cursor()), flush=True)
        sys.stdin.readline()
"""


def killed_at(folder: Path, step: Step) -> list[str]:
    """Run a compaction that is killed at a step; return the names of the acked records."""
    done = subprocess.run(
        expirable([sys.executable, "-c", textwrap.dedent(COMPACTING), str(folder), step.name]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -9 or "Killed" in done.stderr or done.returncode == 137, done.stderr
    return done.stdout.split()


@contextmanager
def reader(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Return a process that holds a snapshot of the store."""
    with subprocess.Popen(
        expirable([sys.executable, "-c", textwrap.dedent(READING), str(folder)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert int(process.stdout.readline()) > 0
        yield process
        process.stdin.close()


def inodes(folder: Path) -> tuple[int, int]:
    return (folder / DATA_FILE).stat().st_ino, (folder / LOCK_FILE).stat().st_ino


@pytest.mark.parametrize("step", Step)
def test_store_is_complete_after_a_kill_at_any_step(folder: Path, step: Step) -> None:
    store = LmdbStore(folder)
    before, marks = held(store), (store.identity, store.store_id, store.marked(b"topology"))
    store.close()
    is_old = inodes(folder)
    acked = killed_at(folder, step)
    assert bool(acked) == (step is not Step.BEGUN)
    store = LmdbStore(folder)
    found = held(store)
    for number in range(len(acked)):
        before.update(entries(acked[number], f"key-{number + 1}", stamp=3 + number))
    assert found == before
    assert (store.identity, store.store_id, store.marked(b"topology")) == marks
    assert is_clean(folder)
    is_decided = list(Step).index(step) >= list(Step).index(Step.DECIDED)
    assert (inodes(folder)[0] != is_old[0]) == is_decided
    assert store.compact().records == len(found)
    put(store, "later", stamp=10_000)
    assert len(held(store)) == len(found) + 1
    store.close()


@pytest.mark.parametrize("step", [Step.DECIDED, Step.LOCK_MOVED, Step.DATA_MOVED])
def test_lock_file_of_another_process_is_not_used_after_a_kill(folder: Path, step: Step) -> None:
    with reader(folder) as process:
        data, lock = inodes(folder)
        killed_at(folder, step)
        store = LmdbStore(folder)
        assert inodes(folder)[0] != data
        assert inodes(folder)[1] != lock, "it has the state of the old data file"
        for number in range(30):
            put(store, f"later-{number}", stamp=10_000 + number)
        assert process.stdin is not None
        process.stdin.write("\n")
        store.close()


def test_snapshot_of_another_process_survives_the_switch(folder: Path) -> None:
    store = LmdbStore(folder)
    count = len(held(store))
    with reader(folder) as process:
        store.compact()
        for number in range(50):
            put(store, f"later-{number}", stamp=10 + number)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) == count
    with reader(folder):
        assert store._env.readers().count("\n") >= 2, "a later one is seen by the store"
    store.close()


def test_compaction_of_a_stopped_peer_leaves_its_lock_file_behind(folder: Path) -> None:
    LmdbStore(folder).close()
    with reader(folder):
        _, lock = inodes(folder)
        compact(folder)
        assert inodes(folder)[1] != lock
        store = LmdbStore(folder)
        before = held(store)
        put(store, "later", stamp=10)
        assert len(held(store)) == len(before) + 1
        store.close()
    with lmdb.open(os.fspath(folder), readonly=True, max_dbs=8) as environment:
        assert environment.info()["last_txnid"] > 0
