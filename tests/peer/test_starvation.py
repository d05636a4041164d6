"""Comparison and tombstone GC at the same time: neither starves the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dstash.peer.background.maintenance import Pace
from dstash.store.record import partition_of
from dstash.version import stamp_at
from tests.harness.joined import START, Joined

STEP_MS = 250
SECOND = 1000

#: Called at every step.
Step = Callable[[], object]


def pass_time(joined: Joined, milliseconds: int, step: Step = lambda: None) -> None:
    for _ in range(0, milliseconds, STEP_MS):
        joined.now += STEP_MS
        step()
        joined.settle()


def lose(joined: Joined, peer: str, *keys: str) -> None:
    """Make a peer miss keys without a hint."""
    joined.forget(peer, *keys)
    joined.peers[peer].local_partitions.changed(
        {partition_of(key.encode()) for key in keys}, joined.now
    )
    for core in joined.peers.values():
        core.hints.forget(peer)


def time_until_equal(joined: Joined, key: str, step: Step = lambda: None) -> int:
    """Return for how long (milliseconds) replicas differ in a key, at most two minutes."""
    began = joined.now
    while len({joined.record(peer, key) for peer in "abc"}) > 1:
        if joined.now - began > 120 * SECOND:
            break
        pass_time(joined, STEP_MS, step)
    return joined.now - began


def names(first: bytes, count: int) -> list[str]:
    """Return keys of the partition of a key."""
    partition = partition_of(first)
    found = (f"k{number}" for number in range(10**6))
    return [name for name in found if partition_of(name.encode()) == partition][:count]


@pytest.mark.parametrize("interval", [4, 10])
def test_replicas_converge_when_gc_is_as_frequent_as_comparison(interval: int) -> None:
    joined = Joined(pace=Pace(interval * SECOND, interval * SECOND, SECOND))
    keys = [f"k{number}" for number in range(6)]
    # Every partition always has a tombstone to collect.
    deleted = [names(key.encode(), 2)[1] for key in keys]
    joined.delete(*deleted, level="all")
    pass_time(joined, 3 * interval * SECOND)
    joined.delete(*deleted, level="all")
    joined.put(dict.fromkeys(keys, 1), "all")
    lose(joined, "c", *keys[:3])
    lose(joined, "a", *keys[3:])
    began = joined.now
    for key in keys:
        time_until_equal(joined, key)
    assert joined.now - began <= 60 * SECOND


@pytest.mark.parametrize("offset", [0, 27])
def test_constantly_written_partition_converges_at_default_pace(
    offset: int,
) -> None:
    joined = Joined()
    key, written, deleted = names(b"k1", 3)

    def write() -> None:
        joined.put({written: joined.now}, "all")
        joined.delete(deleted, level="all")

    pass_time(joined, 60 * SECOND + offset * SECOND, write)
    for lost in "abc":
        joined.put({key: 1}, "all")
        lose(joined, lost, key)
        assert time_until_equal(joined, key, write) <= 60 * SECOND, lost


def test_promise_is_revoked_when_replicas_disagree() -> None:
    joined = Joined(pace=Pace(10**9, 10 * SECOND, 0))
    key, deleted = names(b"k1", 2)
    joined.put({key: 1, deleted: 1}, "all")
    joined.delete(deleted, level="all")
    partition = partition_of(key.encode())
    for core in joined.peers.values():
        list(core.local_partitions.digests.of(partition))
        assert core.local_partitions.digests.gains_from(partition, stamp_at(joined.now + 1))
    lose(joined, "c", key)
    pass_time(joined, 11 * SECOND)
    asked = [core.local_partitions.floor > stamp_at(START) for core in joined.peers.values()]
    assert asked.count(True) >= 2, "some were asked to promise"
    assert [core.local_partitions.promises(joined.now) for core in joined.peers.values()] == [
        {}
    ] * 3
    assert [core.local_partitions.horizons[partition] for core in joined.peers.values()] == [0] * 3


def test_promise_for_another_stamp_is_kept() -> None:
    joined = Joined(pace=Pace(10**9, 10**9, 0))
    local_partitions = joined.peers["a"].local_partitions
    for partition, stamp in ((1, 10), (2, 20)):
        local_partitions.promise(partition, stamp, joined.now)
    assert local_partitions.release([1, 2, 3], 10) == [1]
    assert local_partitions.promises(joined.now) == {2: 20}


class TestDifferingPartitions:
    def describe(self, joined: Joined, name: str) -> tuple[int, int]:
        found = joined.peers[name].maintenance.describe()
        return found["differing"], found["differing_ms"]

    def test_status_reports_number_and_age_of_differing_partitions(self) -> None:
        joined = Joined(pace=Pace(10 * SECOND, 10**9, 0))
        joined.put({"k": 1}, "all")
        pass_time(joined, 20 * SECOND)
        lose(joined, "c", "k")
        partition = partition_of(b"k")
        for core in joined.peers.values():  # no older record is accepted
            core.local_partitions.advance([partition], 1 << 63)
        pass_time(joined, 45 * SECOND)
        begun = {name: self.describe(joined, name) for name in "abc"}
        differing = {name: facts for name, facts in begun.items() if facts[0]}
        assert {count for count, _ in differing.values()} == {1}
        assert all(25 * SECOND < since <= 45 * SECOND for _, since in differing.values())
        for core in joined.peers.values():
            core.local_partitions.advance([], 0)
            core.local_partitions.horizons[partition] = 0
        pass_time(joined, 25 * SECOND)
        assert {self.describe(joined, name) for name in "abc"} == {(0, 0)}
