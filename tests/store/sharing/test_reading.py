"""A store is read next to its owner only as long as the owner lets it be read."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dstash.errors import StoreError
from dstash.store.directory import DATA_FILE, LOCK_FILE
from dstash.store.record import keyspace, partition_of
from dstash.store.sharing import heartbeat, reading
from dstash.store.sharing.places import StorePlace
from dstash.store.sharing.reading import NotServed, SharedStore
from tests.harness.process import expirable
from tests.store.sharing.owner import ALL, Owner

NOW = 1_700_000_000_000


def place_of(key: str) -> bytes:
    """Return the storage key of a key of the index ``i``."""
    space = keyspace(b"i", frozenset(range(ALL)))
    return space.prefix(partition_of(key.encode())) + key.encode()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    with Owner(tmp_path / "data") as made:
        made.do("put", "key", "one", NOW)
        made.serve(7)
        yield made


@pytest.fixture
def store(owner: Owner) -> Iterator[SharedStore]:
    used = reading.use(owner.place)
    used.renew()
    yield used
    reading.leave(used)


def test_record_is_read_as_the_owner_has_committed_it(owner: Owner, store: SharedStore) -> None:
    assert (store.mark.ticket, store.mark.epoch, store.owner) == (7, 5, ("c", "a"))
    first = store.read(7, place_of("key"))
    assert first is not None
    assert first.endswith(b"one")
    assert store.read(7, place_of("missing")) is None
    owner.do("put", "key", "two", NOW + 1)
    assert [record and record[-3:] for record in _both(store)] == [b"two", None]
    assert store.read(7, place_of("key")) == _both(store)[0]


def _both(store: SharedStore) -> list[bytes | None]:
    return store.read_all(7, [place_of("key"), place_of("missing")])


def _refuses(store: SharedStore, ticket: int = 7) -> bool:
    for read in (
        lambda: store.read(ticket, place_of("key")),
        lambda: store.read_all(ticket, [place_of("key")]),
    ):
        try:
            read()
        except NotServed:
            continue
        return False
    return True


def test_ticket_that_is_taken_back_ends_reads_at_once(owner: Owner, store: SharedStore) -> None:
    owner.do("show", 0)
    assert _refuses(store)
    with pytest.raises(NotServed):
        store.renew()


def test_another_mark_in_the_snapshot_ends_reads(owner: Owner, store: SharedStore) -> None:
    assert not _refuses(store)
    owner.do("mark", 8, 6, ALL)  # the heartbeat still shows the ticket of the mark before
    assert _refuses(store)
    with pytest.raises(NotServed):
        store.renew()
    owner.do("show", 8)
    store.renew()
    assert store.mark.epoch == 6
    assert _refuses(store)
    assert not _refuses(store, 8)


def test_ticket_that_changes_during_a_read_voids_it(store: SharedStore) -> None:
    begin = store._begin
    shown = iter([7, 9, 7, 9])

    class Words:
        def __getitem__(self, place: int) -> int:
            return next(shown) if place == heartbeat.TICKET else heartbeat.boot_time_ns()

    store._words = Words()  # type: ignore[assignment]
    assert _refuses(store)
    assert list(shown) == []
    assert store._begin is begin


def test_old_heartbeat_ends_reads(
    owner: Owner, store: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = heartbeat.boot_time_ns() + 3600 * 10**9
    monkeypatch.setattr(reading, "boot_time_ns", lambda: later)
    assert _refuses(store)
    with pytest.raises(NotServed):
        store.renew()
    monkeypatch.undo()
    assert not _refuses(store)


def test_restarted_owner_is_read_again_with_its_new_mark(owner: Owner, store: SharedStore) -> None:
    owner.kill()
    with Owner(owner.directory) as again:
        assert _refuses(store)
        again.do("put", "key", "new", NOW + 1)
        assert _refuses(store)
        again.serve(9)
        store.renew()
        record = store.read(9, place_of("key"))
        assert record is not None
        assert record.endswith(b"new")


def test_lock_file_that_is_replaced_alone_hides_no_commit(owner: Owner, store: SharedStore) -> None:
    owner.kill()
    (owner.directory / LOCK_FILE).unlink()  # as a peer does that finds that it does not fit
    with Owner(owner.directory) as again:
        again.serve(9)
        store.renew()
        for number in range(1, 6):
            again.do("put", "key", f"{number}", NOW + number)
            record = store.read(9, place_of("key"))
            assert record is not None
            assert record.endswith(b"%d" % number)


def test_another_data_file_is_opened_instead_of_the_old_one(
    owner: Owner, store: SharedStore, tmp_path: Path
) -> None:
    owner.kill()
    copy = tmp_path / "copy"
    copy.write_bytes((owner.directory / DATA_FILE).read_bytes())
    copy.rename(owner.directory / DATA_FILE)
    with Owner(owner.directory) as again:
        again.do("put", "key", "new", NOW + 1)
        again.serve(9)
        assert _refuses(store)
        store.renew()
        record = store.read(9, place_of("key"))
        assert record is not None
        assert record.endswith(b"new")


def test_data_file_that_the_owner_does_not_use_is_not_opened(
    owner: Owner, store: SharedStore, tmp_path: Path
) -> None:
    store.close()
    (tmp_path / "copy").write_bytes((owner.directory / DATA_FILE).read_bytes())
    (tmp_path / "copy").rename(owner.directory / DATA_FILE)
    with pytest.raises(StoreError, match="is not the data file that the peer uses"):
        store.renew()


def test_data_file_that_outgrows_the_map_is_mapped_again(
    owner: Owner, store: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    monkeypatch.setattr(reading, "_LEAST_MAP_BYTES", 1 << 16)
    monkeypatch.setattr(reading, "_GROWTH", 1)
    store.renew()
    for number in range(300):
        owner.do("put", f"{number}", "x" * 200, NOW + number)
    with pytest.raises(NotServed):
        store.read(7, place_of("key"))
    store.renew()
    assert store.read(7, place_of("key")) is not None


def test_store_that_is_not_as_expected_is_refused_with_a_reason(owner: Owner) -> None:
    other = owner.place._replace(store_id="another")
    used = reading.use(other)
    with pytest.raises(StoreError, match="has another store than that of the peer"):
        used.renew()
    with pytest.raises(StoreError, match="has another store than that of the peer"):
        reading.use(owner.place)
    reading.leave(used)
    owner.do("set_format", "9")
    used = reading.use(owner.place)
    with pytest.raises(StoreError, match="store format '9'; this version reads 1, 2"):
        used.renew()
    reading.leave(used)


def test_store_in_this_process_is_not_opened_twice(owner: Owner) -> None:
    used = reading.use(owner.place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: owner._process.pid)
        with pytest.raises(StoreError, match="runs in this process"):
            used.renew()
    reading.leave(used)


def test_directory_without_a_store_is_reported(tmp_path: Path, owner: Owner) -> None:
    with pytest.raises(FileNotFoundError):
        reading.use(StorePlace(owner.place.machine, str(tmp_path / "missing"), "x"))
    used = reading.use(StorePlace(owner.place.machine, str(tmp_path), "x"))
    with pytest.raises(FileNotFoundError, match="HEARTBEAT"):
        used.renew()
    reading.leave(used)


def test_clients_share_a_store_until_the_last_one_leaves(owner: Owner, store: SharedStore) -> None:
    second = reading.use(owner.place)
    assert second is store
    reading.leave(second)
    assert not _refuses(store)


def test_full_table_of_readers_is_reported(owner: Owner, store: SharedStore) -> None:
    script = (
        "import lmdb, sys; environment = lmdb.open(sys.argv[1], readonly=True, max_dbs=8)\n"
        "kept = []\n"
        "try:\n"
        "    while True: kept.append(environment.begin())\n"
        "except lmdb.ReadersFullError: print(len(kept), flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = expirable([sys.executable, "-c", script, str(owner.directory)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 1000
        with pytest.raises(NotServed, match="READERS_FULL"):
            store.read(7, place_of("key"))
        process.kill()
    owner.do("readers")  # frees what the process has left behind
    assert store.read(7, place_of("key")) is not None


def test_store_is_closed_once_all_threads_have_read(store: SharedStore) -> None:
    ends, faults = threading.Event(), list[BaseException]()

    def read() -> None:
        try:
            while not ends.is_set():
                with suppress(NotServed):
                    assert store.read(7, place_of("key")) is not None
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        store.close()
        store.renew()
    ends.set()
    for thread in threads:
        thread.join()
    assert faults == []


def test_forked_child_reads_by_itself_and_leaves_the_parent_alone(
    owner: Owner, store: SharedStore
) -> None:
    kept = [store._begin()]
    held = owner.do("readers")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            kept.clear()
            mine = reading.use(owner.place)
            mine.renew()
            if mine is not store and mine.read(7, place_of("key")) is not None:
                reading.leave(mine)
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert held.strip().splitlines()[1] in owner.do("readers")
    assert kept.pop().get(place_of("key")) is not None
    assert not _refuses(store)
