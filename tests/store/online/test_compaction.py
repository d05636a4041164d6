"""Compaction of a store in use: all content is kept, and every failure leaves the old store."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dstash.errors import Busy, CorruptStore, DiskFull, StoreError, StoreFailed
from dstash.limits import MIB
from dstash.store.crashes import boot_id
from dstash.store.directory import (
    COMPACTED,
    COMPACTING,
    DAMAGED_FILE,
    DATA_FILE,
    LOCK_FILE,
    UNSYNCED_FILE,
)
from dstash.store.environment import journal as journals
from dstash.store.environment import switch as switches
from dstash.store.environment.copy import Copy
from dstash.store.environment.switch import Step
from dstash.store.interface import Identity, Write
from dstash.store.lmdb import LmdbStore
from dstash.store.memory import TwinStore
from dstash.store.online import compaction
from dstash.store.online.compaction import Progress
from dstash.store.record import Record, build_record, is_sound, partition_of
from dstash.store.register.ballot import Promise
from dstash.store.register.header import Header, pack_header
from dstash.store.register.voter import Verdict
from dstash.store.register.votes import Accepts, Prepares
from dstash.types import Durability, RecordFlag
from dstash.version import ZERO, pack, stamp_at
from tests.harness.small_disks import SmallDisk
from tests.store.register.parts import STORAGE_KEY, prepare, register
from tests.store.test_lmdb import NOW, elsewhere, entries, held, put

COUNT = 3000
VALUE = b"\xc4\x62" + bytes(98)
FREE_STEPS = (Step.BEGUN, Step.COPYING, Step.CATCHING_UP)


def names(*numbers: int) -> list[str]:
    return [f"key-{number}" for number in numbers]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store that was written in random order and half of which was deleted."""
    folder = tmp_path_factory.mktemp("made") / "data"
    store = LmdbStore(folder)
    numbers = list(range(2 * COUNT))
    random.Random(1).shuffle(numbers)
    for begin in range(0, 2 * COUNT, 500):
        put(store, *names(*numbers[begin : begin + 500]), value=VALUE, stamp=1)
    gone = entries(*names(*range(COUNT, 2 * COUNT)), value=VALUE, stamp=1)
    store.commit([Write([], NOW, drops=[(key, record[:28]) for key, record in gone])])
    store.adopt(Identity("cluster", "peer", "ignored"))
    store.mark(b"topology", b"content")
    store.close()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data", ignore=shutil.ignore_patterns(LOCK_FILE)))


@pytest.fixture
def store(folder: Path) -> Iterator[LmdbStore]:
    store = LmdbStore(folder)
    yield store
    with suppress(StoreError):  # a test may have closed it
        store.close()


def content(store: LmdbStore) -> tuple[object, ...]:
    everything = (b"", b"\xff" * 9, 10_000)
    marks = store.marked(b"topology"), store.identity, store.store_id, store.high_water
    return marks, held(store), store.promises_between(*everything)


def after_restart(store: LmdbStore) -> tuple[object, ...]:
    """Close the store; return what the next process finds."""
    store.close()
    later = LmdbStore(store.directory)
    found = content(later)
    later.close()
    return found


def is_clean(folder: Path) -> bool:
    return not {COMPACTING, COMPACTED}.intersection(os.listdir(folder))


def test_compacted_store_has_the_same_content_in_a_smaller_file(store: LmdbStore) -> None:
    before, progress = content(store), Progress()
    done = store.compact(progress)
    assert (done.records, progress.copied, progress.of) == (COUNT, COUNT, COUNT)
    assert progress.step is Step.SWITCHED
    size = (store.directory / DATA_FILE).stat().st_size
    assert done.after == size == store.stats().used_bytes < 0.5 * done.before
    assert store.unused_bytes() < 0.1 * size
    assert content(store) == before
    assert is_clean(store.directory)
    store.tend()
    assert store.check_writable() is None
    assert after_restart(store) == before


def test_store_can_be_compacted_and_grown_again(store: LmdbStore) -> None:
    for number in range(2):
        store.compact()
        for part in range(8):
            put(store, f"large-{number}-{part}", value=b"\xc6\0\x50\0\0" + bytes(5 * MIB))
    assert store.stats().map_bytes > 64 * MIB, "it has grown"
    assert store.stats().records == COUNT + 16
    before = content(store)
    assert after_restart(store) == before


def test_commits_at_any_step_are_in_the_new_file(store: LmdbStore) -> None:
    twin = TwinStore()
    twin.records = held(store)
    rng, stamp = random.Random(7), 1

    def commit(step: Step) -> None:
        nonlocal stamp
        if step not in FREE_STEPS:
            return
        stamp += 1
        chosen = entries(*names(*rng.sample(range(3 * COUNT), 40)), stamp=stamp)
        stored = rng.sample(sorted(held(store).items()), 20)
        drops = [(key, record[:28]) for key, record in stored]
        marks = [(b"topology", b"%d" % stamp)]
        write = Write(chosen, NOW, stamp_at(stamp), drops, marks=marks)
        assert store.commit([write]) == twin.commit([write])

    store.compact(on_step=commit)
    assert stamp > 12, "there were several commits"
    found = content(store)
    assert found == (
        (b"%d" % stamp, store.identity, store.store_id, stamp_at(stamp)),
        twin.records,
        [],
    )
    assert after_restart(store) == found


def test_keys_behind_and_ahead_of_the_copy_are_copied_once_more_or_later(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_MAX_WAITING", 1)
    by_key = {key: name for name in names(*range(COUNT)) for key, _ in entries(name)}
    ordered = sorted(by_key)
    changed = [ordered[0], ordered[COUNT // 2], ordered[-1]]
    stamps = iter(range(2, 10_000))

    def change(step: Step) -> None:
        if step is Step.COPYING:
            put(store, *(by_key[key] for key in changed), stamp=next(stamps))

    store.compact(on_step=change)
    last = next(stamps) - 1
    stored = held(store)
    assert len(stored) == COUNT
    expected = entries(*(by_key[key] for key in changed), stamp=last)
    assert [(key, stored[key]) for key in changed] == expected


def test_votes_during_the_copy_are_kept(store: LmdbStore) -> None:
    prepare(store, 5)
    store.compact(on_step=lambda step: step is Step.CATCHING_UP and prepare(store, 9))
    assert prepare(store, 8).past == 9, "the promise of the later round still stands"
    merge = Write([(STORAGE_KEY, register(9))], NOW, horizons=None)
    store.compact(on_step=lambda step: step is Step.CATCHING_UP and store.commit([merge]))
    assert held(store)[STORAGE_KEY] == register(9)
    assert store.promises_between(b"", b"\xff" * 9, 10) == [], "the vote has removed the promise"


def test_votes_on_many_registers_during_the_copy_are_kept(store: LmdbStore) -> None:
    keys = [storage_key_of(b"register-%d" % number) for number in range(20)]
    promised = Prepares(keys, Promise(9, b"aaaa"), [ZERO] * len(keys))
    taken = Accepts([(key, register_of(key, 9)) for key in keys[:10]])

    def vote(request: Prepares | Accepts) -> None:
        [merged] = store.commit([Write([], NOW, votes=request)])
        assert {given.verdict for given in merged.votes} == {Verdict.VOTED}

    store.compact(on_step=lambda step: vote(promised) if step is Step.CATCHING_UP else None)
    everything = (b"", b"\xff" * 9, 100)
    assert {key for key, _ in store.promises_between(*everything)} == set(keys)
    store.compact(on_step=lambda step: vote(taken) if step is Step.CATCHING_UP else None)
    assert {key for key, _ in store.promises_between(*everything)} == set(keys[10:])
    assert {key: held(store)[key] for key in keys[:10]} == dict(taken.entries)


def storage_key_of(key: bytes) -> bytes:
    return partition_of(key).to_bytes(2, "big") + b"\x02@r" + key


def register_of(storage_key: bytes, number: int) -> bytes:
    payload = pack_header(Header(stamp_at(number))) + b"\x01"
    record = Record(pack(stamp_at(number), b"aaaa"), RecordFlag.REGISTER, 0, payload)
    return build_record(b"@r", storage_key[5:], record)


def test_writers_and_readers_meanwhile_lose_nothing(store: LmdbStore) -> None:
    expected, ended = held(store), threading.Event()
    wrong: list[bytes] = []

    def write() -> None:
        stamp = 1
        while not ended.is_set():
            stamp += 1
            chosen = entries(f"key-{stamp % COUNT}", f"new-{stamp}", stamp=stamp)
            store.commit([Write(chosen, NOW, stamp_at(stamp))])
            expected.update(chosen)
            wrong.extend(key for key, record in chosen if store.get(key) != record)

    def watch() -> None:
        while not ended.is_set():
            store.tend()
            store.stats()
            store.sync()

    threads = [threading.Thread(target=target) for target in (write, watch)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        store.compact()
    ended.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store.check_writable() is None
    found = content(store)
    assert found[1] == expected
    assert after_restart(store) == found


def test_scan_across_the_switch_sees_its_snapshot(store: LmdbStore) -> None:
    before, old, reached = held(store), store.generation, threading.Event()
    compacting = threading.Thread(
        target=lambda: store.compact(on_step=lambda step: step is Step.HELD and reached.set())
    )
    with store.snapshot() as snapshot:
        walk = snapshot.walk(b"", b"\xff" * 9)
        seen = [next(walk)]
        compacting.start()
        assert reached.wait(30)
        seen += walk
        assert store.generation == old, "the switch waits"
    compacting.join()
    assert store.generation != old
    assert dict(seen) == before == held(store)


def test_scan_begun_after_the_files_were_moved_delays_the_swap(store: LmdbStore) -> None:
    before, old = held(store), store.generation
    opened, noted = threading.Event(), []

    def scan() -> None:
        with store.snapshot() as snapshot:
            opened.set()
            noted.extend(dict(snapshot.walk(b"", b"\xff" * 9)) == before for _ in range(20))
            noted.append(store.generation == old)

    def begin(step: Step) -> None:
        if step is Step.DATA_MOVED:
            scanning.start()
            assert opened.wait(30)

    scanning = threading.Thread(target=scan)
    store.compact(on_step=begin)
    scanning.join()
    assert noted == [True] * 21
    assert held(store) == before


@pytest.mark.parametrize("durability", [Durability.INTERVAL, Durability.NONE])
def test_unsynced_store_is_compacted_and_still_noted(folder: Path, durability: Durability) -> None:
    store = LmdbStore(folder, durability)
    store.compact()
    put(store, "later", stamp=2)
    store.sync()
    assert (folder / UNSYNCED_FILE).read_text().strip() == boot_id()
    before = content(store)
    assert after_restart(store) == before


def test_second_compaction_at_the_same_time_is_refused(store: LmdbStore) -> None:
    refused = []

    def again(step: Step) -> None:
        if step is Step.BEGUN:
            with pytest.raises(Busy, match="runs already"):
                store.compact()
            refused.append(step)

    store.compact(on_step=again)
    assert refused


def test_cancelled_compaction_leaves_the_store_as_it_was(store: LmdbStore) -> None:
    before, cancelled = content(store), threading.Event()
    inode = (store.directory / DATA_FILE).stat().st_ino
    with pytest.raises(StoreError, match="was cancelled"):
        store.compact(
            cancelled=cancelled, on_step=lambda step: step is Step.COPYING and cancelled.set()
        )
    assert content(store) == before
    assert (store.directory / DATA_FILE).stat().st_ino == inode
    assert is_clean(store.directory)
    assert store.compact().records == COUNT, "it can be tried again"


def test_writes_that_come_too_fast_end_the_compaction(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journals.Journal(most=50)
    monkeypatch.setattr(compaction, "Journal", lambda: journal)

    def write(step: Step) -> None:
        if step is Step.COPYING:
            put(store, *names(*range(60)), stamp=2)

    with pytest.raises(StoreError, match="written faster than they can be copied"):
        store.compact(on_step=write)
    assert len(journal) == 0
    assert store.stats().records == COUNT
    assert is_clean(store.directory)


def test_too_little_room_is_reported_and_nothing_changed(made: Path, tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "disk", 4 * MIB) as disk:
        folder = disk.inside / "data"
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns(LOCK_FILE))
        store = LmdbStore(folder)
        disk.fill()
        with pytest.raises(StoreError, match=r"needs \d+ bytes of free space, and 0 are free"):
            store.compact()
        assert is_clean(folder)
        disk.make_room()
        put(store, "later", stamp=2)
        store.close()


@pytest.mark.parametrize("who", ["the copy", "a commit"])
def test_disk_that_fills_up_ends_the_compaction(made: Path, tmp_path: Path, who: str) -> None:
    with SmallDisk(tmp_path / "disk", 12 * MIB) as disk:
        folder = disk.inside / "data"
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns(LOCK_FILE))
        store = LmdbStore(folder)
        before = content(store)
        large = b"\xc6\0\x40\0\0" + bytes(4 * MIB)

        def fill(step: Step) -> None:
            if step is Step.COPYING and not (disk.inside / "BALLAST").exists():
                disk.fill()
                if who == "a commit":
                    with pytest.raises(DiskFull):
                        put(store, "large", value=large, stamp=2)
                    disk.make_room()

        with pytest.raises(StoreError, match="was given up: the disk is full"):
            store.compact(on_step=fill)
        assert is_clean(folder)
        assert content(store) == before
        put(store, "later", stamp=2)
        store.close()


def test_full_disk_of_the_copy_is_no_failure_of_the_store(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_MARGIN_BYTES", 0)
    with SmallDisk(tmp_path / "disk", 8 * MIB) as disk:
        folder = disk.inside / "data"
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns(LOCK_FILE))
        store = LmdbStore(folder)
        with pytest.raises(DiskFull):
            store.compact(on_step=lambda step: step is Step.BEGUN and disk.fill())
        assert is_clean(folder)
        assert store.check_writable() is None
        disk.make_room()
        put(store, "later", stamp=2)
        store.close()


def test_corrupt_record_stays_corrupt(folder: Path) -> None:
    store = LmdbStore(folder)
    key, record = next(iter(held(store).items()))
    damaged = record[:-1] + b"\1"
    with store._env.begin(store._records, write=True) as transaction:
        transaction.put(key, damaged)
    store.compact()
    assert store.get(key) == damaged
    assert not is_sound(key, damaged)
    store.close()


def test_unreadable_page_is_not_left_out(folder: Path) -> None:
    size = (folder / DATA_FILE).stat().st_size
    code = """
        import os, sys
        from pathlib import Path
        from dstash.errors import CorruptStore
        from dstash.store.lmdb import LmdbStore
        folder, size = Path(sys.argv[1]), int(sys.argv[2])
        store = LmdbStore(folder)
        with (folder / "data.mdb").open("r+b") as file:
            file.seek(5 * 4096)
            file.write(bytes(size - 5 * 4096))
        try:
            store.compact()
        except CorruptStore as error:
            print(error)
            os._exit(3)
    """
    elsewhere(code, folder, size, ok=False)
    assert (folder / DATA_FILE).stat().st_size == size
    with pytest.raises(CorruptStore):
        LmdbStore(folder)


def test_keys_out_of_order_are_refused(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy", [b"records"], MIB)
    copy.append(b"records", [(b"a", b"1"), (b"c", b"3")])
    with pytest.raises(CorruptStore, match="'records' are not in order"):
        copy.append(b"records", [(b"b", b"2"), (b"d", b"4")])
    copy.close()


def test_copy_that_lacks_a_record_does_not_become_the_store(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, append = content(store), Copy.append

    def forget(copy: Copy, name: bytes, part: list[tuple[bytes, bytes]]) -> None:
        append(copy, name, part[1:] if name == b"records" else part)

    monkeypatch.setattr(Copy, "append", forget)
    with pytest.raises(CorruptStore, match="it was not compacted"):
        store.compact()
    assert is_clean(store.directory)
    assert not (store.directory / DAMAGED_FILE).exists()
    assert content(store) == before


@pytest.mark.parametrize("number", [0, 1])
def test_failed_switch_takes_no_more_commits_once_it_is_decided(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = LmdbStore(folder)
    before, calls = content(store), iter(range(9))
    sync = switches.sync_entries

    def fail(path: Path) -> None:
        if next(calls) == number:
            raise OSError(5, "Input/output error")
        sync(path)

    monkeypatch.setattr(switches, "sync_entries", fail)
    error: type[Exception] = StoreFailed if number else StoreError
    with pytest.raises(error, match="Input/output error"):
        store.compact()
    monkeypatch.undo()
    if number:
        with pytest.raises(StoreFailed):
            put(store, "lost", stamp=2)
    assert held(store) == before[1], "reads are still answered"
    assert after_restart(store) == before
    assert is_clean(folder)


def test_other_processes_are_kept_away_before_the_files_are_moved(store: LmdbStore) -> None:
    noted: list[object] = []
    old = store.generation
    store.on_replace = lambda: noted.append("kept away")

    def note(step: Step) -> None:
        noted.append(step)
        store.while_current(old, lambda: noted.append("let in"))

    store.compact(on_step=note)
    place = noted.index("kept away")
    assert noted[place - 1 : place + 2] == ["let in", "kept away", Step.COMPLETE]
    assert "let in" not in noted[place:]
    assert store.generation.inode == (store.directory / DATA_FILE).stat().st_ino != old.inode
    store.while_current(store.generation, lambda: noted.append("let in"))
    assert noted[-2:] == [Step.SWITCHED, "let in"]
    assert store.readers()[1] > 0


def test_new_files_have_the_rights_of_the_old_ones(store: LmdbStore) -> None:
    (store.directory / DATA_FILE).chmod(0o640)
    store.compact()
    for name in (DATA_FILE, LOCK_FILE):
        assert (store.directory / name).stat().st_mode & 0o777 == 0o640
