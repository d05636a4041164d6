"""Tests of the lives of a store, and of the sightings of other peers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

from dstash.cluster.replication.lineage import (
    LINEAGE_MARK,
    LIVES_PER_EPOCH,
    Lineage,
    StoreMemory,
)
from dstash.cluster.topology import transitions
from dstash.cluster.topology.life import Life
from dstash.errors import DiskFull
from dstash.store.memory import TwinStore
from tests.peer.parts import EPOCH, view_of


def lived(store: TwinStore, until: int, now: int) -> Life:
    """Run a process on a store; return what others have seen of it at its end."""
    lineage = Lineage(store, now)
    store.high_water = max(store.high_water, until)
    return lineage.current


def test_continued_store_agrees_with_all_sightings() -> None:
    store = TwinStore()
    seen = [lived(store, 100 * number, number) for number in range(1, 10)]
    lineage = Lineage(store, 99)
    assert not any(map(lineage.contradicts, seen))
    assert not lineage.contradicts(lineage.current)


def test_copy_from_before_a_life_is_old() -> None:
    store = TwinStore()
    lived(store, 100, 1)
    copy = deepcopy(store)
    seen = lived(store, 200, 2)
    assert Lineage(copy, 3).contradicts(seen)


def test_copy_from_the_middle_of_a_life_is_old() -> None:
    store = TwinStore()
    Lineage(store, 1)
    store.high_water = 100
    copy = deepcopy(store)
    store.high_water = 200
    assert Lineage(copy, 2).contradicts(Life(1, 1, 200))
    assert not Lineage(copy, 2).contradicts(Life(1, 1, 100))


def test_old_copy_is_recognised_after_restarts_and_newer_writes() -> None:
    store = TwinStore()
    lived(store, 100, 1)
    copy = deepcopy(store)
    seen = lived(store, 200, 2)
    for number in range(10):
        lived(copy, 1000 + number, 10 + number)
    assert Lineage(copy, 99).contradicts(seen)


def test_sightings_before_streaming_are_void() -> None:
    store = TwinStore()
    lived(store, 100, 1)
    copy = deepcopy(store)
    seen = [lived(store, 100 * number, number) for number in range(2, 9)]
    lineage = Lineage(copy, 20)
    assert all(map(lineage.contradicts, seen))
    copy.mark(*lineage.rebase(20, 5))
    assert not any(map(lineage.contradicts, seen))
    assert not any(map(Lineage(copy, 21).contradicts, seen))


def test_numbers_of_lives_between_two_old_copies_are_not_used_again() -> None:
    """Two old copies were put back, and no member has heard of the life between (seed 200736)."""
    copy = TwinStore()
    lived(copy, 100, 1)
    between = deepcopy(copy)
    lineage = Lineage(between, 30)
    between.mark(*lineage.rebase(30, 5))
    seen = [lineage.current, lived(between, 200, 31)]
    last = Lineage(copy, 20)  # its clock was set back (seed 820696)
    copy.mark(*last.rebase(20, 7))
    for known in (last, Lineage(copy, 21)):
        assert not any(map(known.is_behind, seen))
        assert known.is_behind(Life(9 * LIVES_PER_EPOCH, 30, 100))


def test_topology_that_lists_a_streamed_store_reveals_an_older_copy() -> None:
    """No member has heard of the life in which it was streamed (seed 820748)."""
    store = TwinStore()
    lived(store, 100, 1)
    copy = deepcopy(store)
    lineage = Lineage(store, 2)
    store.mark(*lineage.rebase(2, EPOCH))
    topology = view_of().topology
    (member, *_) = topology.members
    topology = topology.with_member(replace(member, synced=False))
    listed = transitions.streamed(topology, member.id, member.store_id, lineage.current)
    assert listed is not None
    seen = Life(*listed.members[0].seen)
    assert not Lineage(store, 3).contradicts(seen)
    assert Lineage(copy, 3).contradicts(seen)


def test_copy_from_before_streaming_is_old() -> None:
    store = TwinStore()
    lived(store, 100, 1)
    copy = deepcopy(store)
    lineage = Lineage(store, 2)
    store.mark(*lineage.rebase(2, 5))
    assert Lineage(copy, 3).contradicts(lineage.current)


def test_stamps_of_uncounted_lives_are_compared_with_first_start() -> None:
    store = TwinStore()
    store.high_water = 100
    lineage = Lineage(store, 1)
    store.high_water = 500
    assert not lineage.contradicts(Life(0, 0, 100))
    assert lineage.contradicts(Life(0, 0, 101))


def test_only_the_last_lives_are_kept_and_earlier_ones_still_agree() -> None:
    store = TwinStore()
    seen = [lived(store, 100 * number, number) for number in range(1, 200)]
    assert len(store.marked(LINEAGE_MARK) or b"") < 4000
    assert not any(map(Lineage(store, 999).contradicts, seen))


class _FullStore(TwinStore):
    """A store whose disk has no room for a mark."""

    def mark(self, name: bytes, content: bytes) -> None:
        raise DiskFull("no room")


def test_old_copy_that_starts_on_a_full_disk_is_recognised() -> None:
    store = TwinStore()
    store.high_water = 100
    before = Lineage(store, 1).current
    copy = _FullStore()
    copy.marks, copy.high_water = dict(store.marks), 100
    lineage = Lineage(copy, 2)
    assert lineage.current.start == before.start, "the previous life continues"
    assert not lineage.contradicts(before)
    assert lineage.contradicts(before._replace(stamp=101))
    copy.high_water = 200  # by records of other replicas, which hide the loss
    assert lineage.contradicts(before._replace(stamp=101))
    lineage.show()
    assert not lineage.contradicts(before._replace(stamp=200)), "this process may have shown it"
    assert lineage.contradicts(before._replace(stamp=201))


def test_start_on_a_full_disk_continues_the_previous_life() -> None:
    class Full(TwinStore):
        def mark(self, name: bytes, content: bytes) -> None:
            raise DiskFull("no room")

    store = TwinStore()
    before = lived(store, 100, 1)
    full = Full()
    full.marks, full.high_water = store.marks, store.high_water
    assert Lineage(full, 2).current.start == before.start


def test_memory_outlives_its_process() -> None:
    store = TwinStore()
    memory = StoreMemory(store)
    memory.note("s", Life(1, 1, 5))
    memory.note("s", Life(2, 2, 4))
    memory.note("s", Life(2, 2, 3))
    store.mark(*memory.mark())
    again = StoreMemory(store)
    assert again.of("s") == (Life(1, 1, 5), Life(2, 2, 4))
    assert (again.newest("s"), again.newest_stamp("s")) == (Life(2, 2, 4), 5)
    assert not again.is_dirty
    again.note("s", Life(2, 2, 4))
    assert not again.is_dirty
    again.keep_only(["t"])
    assert again.is_dirty
    assert list(again.all()) == []


def test_memory_of_many_lives_is_bounded() -> None:
    memory = StoreMemory(TwinStore())
    for number in range(100):
        memory.note("s", Life(number, number, number))
    assert len(memory.of("s")) == 16
    assert memory.newest("s") == Life(99, 99, 99)
