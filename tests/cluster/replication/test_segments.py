"""Tests of segments: digests that are put together from them equal those of a whole walk."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.cluster.replication.digests.segments import MAX_SEGMENTS
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.drops import Drop
from dstash.limits import PARTITIONS
from dstash.store.digest import DigestKind, Sum, is_reapable_at, reapable_from
from dstash.store.memory import TwinStore
from dstash.store.record import Record as Fields
from dstash.store.record import build_record, partition_of, partition_range, version_of
from dstash.store.register.header import Header, pack_header
from dstash.types import NEVER, RecordFlag
from dstash.version import newest_stamp, pack, stamp_at
from tests.cluster.replication.test_partitions import result_of

PARTITION = 7
KEYS = [key for n in range(400_000) if partition_of(key := b"%d" % n) == PARTITION][:60]
TIME = 1_700_000_000_000
_STAMPS = [stamp_at(TIME + n) for n in range(20)]


def record_of(key: bytes, stamp: int, kind: str, touched: int = 0) -> bytes:
    """Return a record of one of the kinds that digests tell apart."""
    flags, expiry, payload = 0, NEVER, b"\1"
    index, version = b"i", pack(stamp, b"test", touched)
    if kind == "tombstone":
        flags, payload = RecordFlag.TOMBSTONE, b""
    elif kind == "expiring":
        expiry = TIME + key[-1] % 20
    elif kind == "restored":
        flags = RecordFlag.RESTORED
    elif kind.endswith("register"):
        index, version = b"@i", pack(stamp, b"test")
        number = stamp + (3 if "late" in kind else 0)
        payload = pack_header(Header(stamp, int("fenced" in kind), number)) + b"\1"
        flags = RecordFlag.REGISTER
        if "dead" in kind:
            flags, payload = flags | RecordFlag.TOMBSTONE, payload[:-1]
    return build_record(index, key, Fields(version, flags, expiry, payload))


KINDS = [
    "plain",
    "plain",
    "tombstone",
    "expiring",
    "restored",
    "live register",
    "dead register",
    "late dead register",
    "fenced dead register",
]


def storage_key_of(key: bytes, kind: str) -> bytes:
    index = b"@i" if kind.endswith("register") else b"i"
    return PARTITION.to_bytes(2, "big") + bytes((len(index),)) + index + key


class Replica:
    """A store of one partition, and what its digests should be."""

    def __init__(self, slice_records: int) -> None:
        self.store = TwinStore()
        self.partitions = LocalPartitions(self.store, slice_records)
        self.digests = self.partitions.digests
        self.reads = 0
        walk = self.store.snapshot

        def counted() -> Any:
            self.reads += 1
            return walk()

        self.store.snapshot = counted  # type: ignore[method-assign]

    def write(self, rng: random.Random) -> None:
        key, kind = rng.choice(KEYS), rng.choice(KINDS)
        storage_key = storage_key_of(key, kind)
        if rng.random() < 0.1:
            self.store.records.pop(storage_key, None)
        else:
            touched = rng.choice([0, 0, rng.choice(_STAMPS)])
            self.store.records[storage_key] = record_of(key, rng.choice(_STAMPS), kind, touched)
        if rng.random() < 0.1:
            self.partitions.changed([PARTITION], TIME)
        else:
            self.digests.changed_key(storage_key)

    def advance(self, rng: random.Random) -> None:
        stamp = rng.choice(_STAMPS)
        self.partitions.advance([PARTITION], stamp)
        if rng.random() < 0.3:
            self.partitions.retreat({PARTITION: rng.choice([0, *_STAMPS])}, stamp)

    def reap(self) -> None:
        horizon = self.partitions.horizons[PARTITION]
        ranges = self.digests.reapable_ranges(PARTITION)
        for key, record in list(self.store.records.items()):
            if any(begin <= key < end for begin, end in ranges) and is_reapable_at(record, horizon):
                del self.store.records[key]
                self.digests.changed_key(key)

    def expected(self, until: int | None, kind: DigestKind) -> bytes:
        horizon = self.partitions.horizons[PARTITION] if until is None else until
        total = Sum(horizon, until, kind)
        total.add(sorted(self.store.records.items()))
        return total.digest()

    def digest(self, until: int | None = None, kind: DigestKind = DigestKind.CONTENT) -> bytes:
        return result_of(self.digests.of(PARTITION, until, kind))


@pytest.mark.parametrize("seed", range(60))
def test_digests_equal_those_of_a_whole_walk_after_any_changes(seed: int) -> None:
    rng = random.Random(seed)
    replica = Replica(rng.choice([1, 2, 5, 50]))
    walking: Generator[Any, Any, Any] | None = None
    for _ in range(300):
        step = rng.random()
        if step < 0.4:
            replica.write(rng)
        elif step < 0.5:
            replica.advance(rng)
        elif step < 0.55:
            replica.reap()
        elif step < 0.75:
            # A walk that is interrupted by changes, perhaps never to be resumed.
            if walking is None or rng.random() < 0.1:
                until = rng.choice([None, None, *_STAMPS])
                walking = replica.digests.of(PARTITION, until, rng.choice(list(DigestKind)))
            if next(walking, "end") == "end":
                walking = None
        else:
            until, kind = rng.choice([None, *_STAMPS]), rng.choice(list(DigestKind))
            assert replica.digest(until, kind) == replica.expected(until, kind)
    replica.digest()
    assert replica.digests.count(PARTITION) == len(replica.store.records)


@pytest.mark.parametrize("seed", range(20))
def test_reaping_drops_all_that_a_whole_walk_would(seed: int) -> None:
    rng = random.Random(seed)
    replica = Replica(rng.choice([1, 2, 5]))
    for _ in range(20):
        for _ in range(rng.randrange(12)):
            replica.write(rng)
        replica.digest()
        for stamp in _STAMPS:
            may_drop = any(is_reapable_at(record, stamp) for record in reapable_later(replica))
            assert may_drop <= replica.digests.gains_from(PARTITION, stamp)
        replica.advance(rng)
        for _ in range(rng.randrange(3)):
            replica.write(rng)
        replica.reap()
        horizon = replica.partitions.horizons[PARTITION]
        replica.digest()
        replica.reap()
        left = [
            key for key, record in replica.store.records.items() if is_reapable_at(record, horizon)
        ]
        assert left == []


def reapable_later(replica: Replica) -> list[bytes]:
    """Return the records that the horizon does not cover yet."""
    horizon = replica.partitions.horizons[PARTITION]
    records = replica.store.records.values()
    return [record for record in records if not is_reapable_at(record, horizon)]


@given(
    st.sampled_from(KEYS),
    st.sampled_from(KINDS),
    st.sampled_from(_STAMPS),
    st.sampled_from([0, *_STAMPS]),
)
def test_reapable_from_is_the_lowest_stamp_at_which_a_record_is_reapable(
    key: bytes, kind: str, stamp: int, touched: int
) -> None:
    record = record_of(key, stamp, kind, touched)
    lowest = reapable_from(record)
    assert lowest >= newest_stamp(version_of(record))
    assert is_reapable_at(record, lowest)
    assert not is_reapable_at(record, lowest - 1)
    never = {"plain", "restored", "live register", "fenced dead register"}
    assert (lowest == 1 << 64) is (kind in never)


def filled(keys: Sequence[bytes], slice_records: int) -> Replica:
    replica = Replica(slice_records)
    for key in keys:
        replica.store.records[storage_key_of(key, "plain")] = record_of(key, _STAMPS[0], "plain")
    replica.digest()
    return replica


def test_write_costs_the_walk_of_one_segment() -> None:
    replica = filled(KEYS, 5)
    replica.reads = 0
    replica.digests.changed_key(storage_key_of(KEYS[30], "plain"))
    assert replica.digest() == replica.expected(None, DigestKind.CONTENT)
    assert replica.reads == 2, "a full slice, and the end"


def test_horizon_that_covers_no_tombstone_costs_no_walk() -> None:
    replica = filled(KEYS, 5)
    tombstone = storage_key_of(KEYS[30], "tombstone")
    replica.store.records[tombstone] = record_of(KEYS[30], _STAMPS[9], "tombstone")
    replica.digests.changed_key(tombstone)
    replica.digest()
    replica.reads = 0
    replica.partitions.advance([PARTITION], _STAMPS[8])
    before = replica.digest()
    assert (replica.reads, replica.digests.reapable_ranges(PARTITION)) == (0, [])
    replica.partitions.advance([PARTITION], _STAMPS[9])
    assert replica.digest() != before
    assert replica.reads == 2
    [(begin, end)] = replica.digests.reapable_ranges(PARTITION)
    assert begin <= tombstone < end
    assert len([key for key in replica.store.records if begin <= key < end]) == 5
    changed = max(replica.store.records)
    replica.digests.changed_key(changed)
    [_, (begin, end)] = replica.digests.reapable_ranges(PARTITION)
    assert begin <= changed < end, "it may be reapable"


def test_number_of_segments_is_bounded() -> None:
    replica = filled(KEYS, 1)
    index = b"another"
    prefix = PARTITION.to_bytes(2, "big") + bytes((len(index),)) + index
    for number in range(3 * MAX_SEGMENTS):
        key = b"%d" % number
        fields = Fields(pack(_STAMPS[0], b"test"), 0, NEVER, b"\1")
        replica.store.records[prefix + key] = build_record(index, key, fields)
        replica.digests.changed_key(prefix + key)
        assert replica.digest() == replica.expected(None, DigestKind.CONTENT)
    replica.reads = 0
    replica.digests.changed_key(prefix + b"0")
    replica.digest()
    assert 2 <= replica.reads <= 70, "an eighth to a quarter of 250 records, one in a slice"


def test_dropped_records_count_as_missing_before_and_after_their_removal() -> None:
    replica = filled(KEYS, 5)
    replica.partitions.install_drops((Drop("i", "", _STAMPS[5], 1),))
    assert replica.digest() == bytes(16)
    replica.store.records.clear()
    replica.digests.changed_key(storage_key_of(KEYS[0], "plain"))
    for key in KEYS:
        replica.digests.changed_key(storage_key_of(key, "plain"))
    replica.partitions.drops.unswept.clear()
    assert replica.digest() == bytes(16)


def test_scrub_reads_every_record() -> None:
    replica = filled(KEYS, 5)
    key = storage_key_of(KEYS[10], "plain")
    replica.store.records[key] = replica.store.records[key][:-1] + b"\2"
    replica.digest()
    assert PARTITION not in replica.partitions.corruption
    result_of(replica.digests.scrub(PARTITION))
    assert replica.partitions.corruption.known(PARTITION) == {key}
    replica.store.records[key] = record_of(KEYS[10], _STAMPS[0], "plain")
    replica.digests.changed_key(key)
    assert replica.digest() == replica.expected(None, DigestKind.CONTENT)
    assert PARTITION not in replica.partitions.corruption


def test_ranges_are_those_of_the_partition() -> None:
    assert partition_range(PARTITIONS - 1) == (b"\x0f\xff", b"\x10\x00")
    replica = filled(KEYS[:3], 50)
    replica.partitions.advance([PARTITION], _STAMPS[0])
    replica.digests.changed([PARTITION])
    assert replica.digests.reapable_ranges(PARTITION) == []
