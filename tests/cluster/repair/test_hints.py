"""Tests of hints: their bounds, their order on disk, and dirty partitions."""

from __future__ import annotations

import pytest

from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication.tasks import Merge
from dstash.errors import DiskFull
from dstash.store.memory import TwinStore

NOW = 1_700_000_000_000
AGE = 60_000


def storage_key(partition: int, number: int) -> bytes:
    return partition.to_bytes(2, "big") + b"\x01i" + b"%05d" % number


def test_take_returns_keys_in_disk_order() -> None:
    hints = Hints(10_000, AGE)
    scattered = [storage_key(number * 37 % 50, number) for number in range(2000)]
    hints.add("b", scattered, NOW)
    assert len(hints) == 2000
    assert hints.describe() == {"b": 2000}
    taken: list[bytes] = []
    while some := hints.take("b"):
        assert some == sorted(some)
        assert len({key[:2] for key in some}) <= 2 + len(some) // 40  # 40 keys a partition
        taken += some
    assert sorted(taken) == sorted(scattered)
    assert (len(hints), hints.waiting(), hints.describe()) == (0, [], {})


def test_hints_past_the_limit_become_dirty_partitions() -> None:
    hints = Hints(3, AGE)
    hints.add("b", [storage_key(1, 1), storage_key(1, 2)], NOW)
    hints.add("c", [storage_key(2, 1), storage_key(3, 1)], NOW)
    hints.add("b", [storage_key(1, 1), storage_key(4, 1)], NOW)
    assert len(hints) == 3
    assert hints.describe() == {"b": 3, "c": 2}
    assert hints.describe_dirty() == {"b": 1, "c": 1}
    assert hints.take_dirty("b") == 4
    assert hints.take_dirty("c") == 3
    assert hints.take_dirty("b") is None
    hints.forget("b")
    assert (len(hints), hints.waiting()) == (1, ["c"])


def test_old_hint_becomes_a_dirty_partition() -> None:
    hints = Hints(100, AGE)
    hints.add("b", [storage_key(1, 1), storage_key(2, 1)], NOW)
    hints.add("b", [storage_key(1, 2), storage_key(2, 1)], NOW + 1)
    hints.age(NOW + AGE + 1)
    assert hints.take_dirty("b") == 1
    assert hints.take_dirty("b") is None
    assert hints.take("b") == [storage_key(1, 2), storage_key(2, 1)]


class TestMarks:
    """The marks that survive a restart: the partitions that have hints."""

    def saved(self, hints: Hints) -> dict[bytes, bytes]:
        """Return the marks to commit, by name."""
        marks: dict[bytes, bytes] = {}
        for effect in hints.marks.save():
            assert isinstance(effect, Merge)
            marks |= dict(effect.marks)
        return marks

    def loaded(self, marks: dict[bytes, bytes], *peers: str) -> Hints:
        """Return the hints after a restart."""
        store = TwinStore()
        store.marks = marks
        hints = Hints(100, AGE)
        hints.load(store, peers)
        return hints

    def test_partitions_of_hints_are_dirty_after_a_restart(self) -> None:
        hints = Hints(2, AGE)
        hints.add("b", [storage_key(0, 1), storage_key(4095, 1), storage_key(7, 1)], NOW)
        hints.add("c", [storage_key(1, 1)], NOW)
        marks = self.saved(hints)
        assert {len(content) for content in marks.values()} == {512}
        assert self.loaded(marks, "b", "c").describe_dirty() == {"b": 3, "c": 1}
        assert self.loaded(marks, "b").describe_dirty() == {"b": 3}

    def test_another_hint_of_a_partition_changes_nothing_on_disk(self) -> None:
        hints = Hints(10, AGE)
        hints.add("b", [storage_key(1, 1)], NOW)
        assert self.saved(hints)
        hints.add("b", [storage_key(1, 2)], NOW)
        assert not hints.marks.has_unsaved
        assert not self.loaded(self.saved(hints), "b").marks.has_unsaved

    def test_replayed_hints_are_dropped_and_waiting_ones_kept(self) -> None:
        hints = Hints(10, AGE)
        hints.add("b", [storage_key(1, 1), storage_key(2, 1)], NOW)
        marks = self.saved(hints)
        hints.take("b")
        hints.add("b", [storage_key(2, 2)], NOW)  # while the others were in flight
        hints.replayed("b")
        marks |= self.saved(hints)
        assert self.loaded(marks, "b").take_dirty("b") == 2
        hints.take("b")
        hints.replayed("b")
        marks |= self.saved(hints)
        assert self.loaded(marks, "b").waiting() == []

    def test_hints_for_a_removed_peer_are_dropped(self) -> None:
        hints = Hints(10, AGE)
        hints.add("b", [storage_key(1, 1)], NOW)
        marks = self.saved(hints)
        hints.forget("b")
        marks |= self.saved(hints)
        assert set(marks.values()) == {b""}

    def test_marks_are_stored_after_a_failed_commit(self) -> None:
        hints = Hints(10, AGE)
        hints.add("b", [storage_key(1, 1)], NOW)
        saving = hints.marks.save()
        next(saving)
        with pytest.raises(DiskFull):
            saving.throw(DiskFull("the disk is full"))
        assert hints.marks.has_unsaved
        assert self.loaded(self.saved(hints), "b").describe_dirty() == {"b": 1}

    def test_bitmap_of_another_length_is_ignored(self) -> None:
        assert self.loaded({b"hints:b": b"\xff" * 7}, "b").waiting() == []
