"""Compactions of a peer's store: when they begin, and what the status and the log say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dstash import events
from dstash.errors import Busy, StoreError
from dstash.peer.supervision.compactions import Compactions, Schedule
from dstash.store.interface import Write
from dstash.store.lmdb import LmdbStore
from dstash.store.online.compaction import Compacted, Progress
from tests.harness.waiting import wait_until
from tests.store.test_lmdb import NOW, entries, put

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    store = LmdbStore(tmp_path / "data")
    yield store
    store.close()


def empty(store: LmdbStore) -> None:
    """Store some MiB and delete them again."""
    names = [f"key-{number}" for number in range(2000)]
    value = b"\xc5\x07\xd0" + bytes(2000)
    put(store, *names, value=value)
    gone = entries(*names, value=value)
    store.commit([Write([], NOW, drops=[(key, record[:28]) for key, record in gone])])


class Held(LmdbStore):
    """A store whose compaction waits until it is released, and may fail then."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.begun, self.released = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def compact(
        self,
        progress: Progress | None = None,
        cancelled: threading.Event | None = None,
        on_step: object = None,
    ) -> Compacted:
        self.begun.set()
        assert self.released.wait(30)
        if self.error is not None:
            raise self.error
        return super().compact(progress, cancelled)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Held]:
    store = Held(tmp_path / "slow")
    yield store
    store.close()


def test_store_is_compacted_by_itself_when_much_of_it_is_unused(store: LmdbStore) -> None:
    empty(store)
    before = store.stats()
    assert before.unused_bytes > 0.5 * before.used_bytes > MIB
    compactions = Compactions(store, Schedule(0.5, MIB, lambda: 0.0), interval=0.01)
    with capture_logs() as lines:
        compactions.start()
        wait_until(lambda: compactions.describe()["ended"] == 1, 30, "it is compacted")
        compactions.stop()
    after = store.stats().used_bytes
    assert after < 0.1 * before.used_bytes
    state = compactions.describe()
    assert (state["running"], state["given_up"], state["why_given_up"]) == (False, 0, "")
    assert (state["before"], state["after"]) == (before.used_bytes, after)
    assert [(line["event"], line.get("why")) for line in lines] == [
        (events.COMPACTION_BEGUN, "unused space"),
        (events.COMPACTION_ENDED, None),
    ]


def test_order_begins_a_compaction_at_once(slow: Held) -> None:
    compactions = Compactions(slow, Schedule(0, 0), interval=600)
    compactions.start()
    compactions.order()
    assert slow.begun.wait(30)
    assert compactions.describe()["running"]
    with pytest.raises(Busy, match="runs already"):
        compactions.order()
    slow.released.set()
    wait_until(lambda: compactions.describe()["ended"] == 1, 30, "it has ended")
    wait_until(lambda: not compactions.describe()["running"], 30, "it does not run")
    compactions.order()
    wait_until(lambda: compactions.describe()["ended"] == 2, 30, "it has run again")
    compactions.stop()


@pytest.mark.parametrize("error", [StoreError("no room"), ValueError("a defect")])
def test_failed_compaction_is_reported_and_not_tried_again(slow: Held, error: Exception) -> None:
    slow.error = error
    slow.released.set()
    compactions = Compactions(slow, Schedule(0.5, 0, lambda: 0.0), interval=600)
    compactions.start()
    with capture_logs() as lines:
        compactions.suggest("a snapshot is held")
        wait_until(lambda: compactions.describe()["given_up"] == 1, 30, "it was given up")
    assert str(error) in compactions.describe()["why_given_up"]
    assert len(lines) == 2
    wait_until(lambda: not compactions.describe()["running"], 30, "it does not run")
    compactions.suggest("a snapshot is held")
    assert not compactions.describe()["running"], "not for an hour"
    slow.error = None
    compactions.order()
    wait_until(lambda: compactions.describe()["ended"] == 1, 30, "an order still begins one")
    assert compactions.describe()["why_given_up"] == ""
    compactions.stop()


def test_stop_ends_the_compaction_that_runs(slow: Held) -> None:
    put(slow, *(f"key-{number}" for number in range(1000)))
    compactions = Compactions(slow, Schedule(0, 0), interval=600)
    compactions.start()
    compactions.order()
    assert slow.begun.wait(30)
    compactions._stop.set()
    slow.released.set()
    compactions.stop()
    assert "was cancelled" in compactions.describe()["why_given_up"]


def test_suggestion_is_ignored_when_only_orders_count(store: LmdbStore) -> None:
    compactions = Compactions(store, Schedule(0, 0))
    compactions.suggest("a snapshot is held")
    assert not compactions.describe()["running"]


class TestSchedule:
    """The decision without an order."""

    def test_small_or_full_files_are_left_alone(self) -> None:
        schedule = Schedule(0.5, 100, lambda: 0.0)
        assert not schedule.is_due(99, 99, 0.0)
        assert not schedule.is_due(100, 49, 0.0)
        assert schedule.is_due(100, 50, 0.0)
        assert not Schedule(0, 0, lambda: 0.0).is_due(100, 100, 0.0)

    def test_begin_is_delayed_by_chance(self) -> None:
        schedule = Schedule(0.5, 0, lambda: 0.25)
        assert not schedule.is_due(100, 60, 1000.0)
        assert not schedule.is_due(100, 70, 1149.0)
        assert schedule.is_due(100, 70, 1150.0)

    def test_delay_begins_again_when_the_file_was_full_in_between(self) -> None:
        schedule = Schedule(0.5, 0, lambda: 0.25)
        assert not schedule.is_due(100, 60, 1000.0)
        assert not schedule.is_due(100, 10, 1100.0)
        assert not schedule.is_due(100, 60, 1150.0)
        assert schedule.is_due(100, 60, 1300.0)

    def test_none_begins_for_an_hour_after_a_failure(self) -> None:
        schedule = Schedule(0.5, 0, lambda: 0.0)
        schedule.given_up(1000.0)
        assert not schedule.is_due(100, 60, 4599.0)
        assert schedule.is_due(100, 60, 4600.0)
