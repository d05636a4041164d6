"""Tests of local partitions: promises, digests, and clocks that are set back."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dstash.cluster.replication.partitions import (
    BUSY_MS,
    CATCHING_UP_MS,
    PROMISE_MS,
    LocalPartitions,
)
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.limits import PARTITIONS
from dstash.store.digest import EMPTY
from dstash.store.interface import Write
from dstash.store.memory import TwinStore
from dstash.store.record import head, keyspace, partition_of
from dstash.store.sealing import seal
from dstash.types import RecordFlag
from dstash.version import pack

NOW = 1_700_000_000_000


def test_expired_promise_stays_expired_when_clock_is_set_back() -> None:
    local_partitions = LocalPartitions(TwinStore())
    local_partitions.promise(7, 100, NOW)
    assert local_partitions.promises(NOW) == {7: 100}
    assert not local_partitions.has_promised(7, 99, NOW)
    assert local_partitions.promises(NOW + PROMISE_MS) == {}
    # Repairs arrived meanwhile: the earlier digest is out of date.
    assert not local_partitions.has_promised(7, 100, NOW)
    assert local_partitions.promises(NOW) == {}


def test_promise_is_not_prolonged_when_clock_is_set_back() -> None:
    local_partitions = LocalPartitions(TwinStore())
    local_partitions.promise(7, 100, NOW + 3_600_000)
    assert local_partitions.has_promised(7, 100, NOW)
    assert not local_partitions.has_promised(7, 100, NOW + PROMISE_MS)


def test_partitions_are_busy_for_a_bounded_time_while_catching_up() -> None:
    local_partitions = LocalPartitions(TwinStore())

    def is_busy(now: int) -> bool:
        return not local_partitions.quiet_among([7], now)

    assert not is_busy(NOW)
    local_partitions.pushed(NOW)
    assert is_busy(NOW + BUSY_MS - 1)
    assert not is_busy(NOW + BUSY_MS)
    assert not is_busy(NOW - 1), "the clock was set back"
    pushes = range(NOW + BUSY_MS, NOW + BUSY_MS + CATCHING_UP_MS + 1, BUSY_MS // 2)
    for moment in pushes:
        local_partitions.pushed(moment)
        assert is_busy(moment) is (moment < NOW + BUSY_MS + CATCHING_UP_MS)
    quiet = pushes[-1] + BUSY_MS
    local_partitions.pushed(quiet)
    assert is_busy(quiet), "another one begins"


def test_digest_is_not_cached_when_horizon_moves_during_it() -> None:
    store = TwinStore()
    space = keyspace(b"i", frozenset({partition_of(b"k")}))
    tombstone = seal(space, [b"k"], head(pack(4, b"test"), RecordFlag.TOMBSTONE), [b""])
    store.commit([Write(tombstone, NOW)])
    local_partitions = LocalPartitions(store, slice_records=1)
    walking = local_partitions.digests.of(partition_of(b"k"))
    next(walking)  # the tombstone was stored
    local_partitions.advance([partition_of(b"k")], 9)
    for _ in walking:
        pass
    digest = result_of(local_partitions.digests.of(partition_of(b"k")))
    assert digest == EMPTY, "tombstones below the horizon do not count"


def test_walk_pauses_after_every_third_slice() -> None:
    store = TwinStore()
    space = keyspace(b"i", frozenset(range(PARTITIONS)))
    keys = [key for n in range(100_000) if partition_of(key := b"%d" % n) == 7][:7]
    store.commit([Write(seal(space, keys, head(pack(4, b"test")), [b"\1"] * 7), NOW)])
    effects = list(LocalPartitions(store, slice_records=1).digests.of(7))
    rests = [effect.milliseconds for effect in effects if isinstance(effect, Pause)]
    assert rests == [0, 0, 1, 0, 0, 1, 0, 0], "seven slices, and the end"


@given(
    st.sets(st.sampled_from([0, 1, 2, 7, 8, 4094, 4095])),
    st.sets(st.sampled_from([0, 1, 2, 7, 8, 4094, 4095])),
)
def test_empty_among_returns_partitions_without_records(held: set[int], asked: set[int]) -> None:
    store = TwinStore()
    store.records = {partition.to_bytes(2, "big") + b"\x01ik": b"record" for partition in held}
    assert result_of(LocalPartitions(store).empty_among(sorted(asked))) == sorted(asked - held)


def result_of(walking: Generator[Effect, None, Any]) -> Any:
    """Return the result of a walk."""
    while True:
        try:
            next(walking)
        except StopIteration as stop:
            return stop.value
