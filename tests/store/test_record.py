"""Tests of the record layout on disk, and of its checksum."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstash.errors import CorruptRecord, Misrouted
from dstash.limits import PARTITIONS
from dstash.store.record import (
    HEAD_BYTES,
    PLAIN,
    Keyspace,
    Record,
    build_record,
    head,
    is_intact,
    is_live_head,
    is_sound,
    keyspace,
    open_record,
    partition_of,
    split_storage_key,
)
from dstash.store.sealing import locate, seal
from dstash.types import NEVER, RecordFlag
from dstash.version import pack

VERSION = pack(0x1122334455667788, b"abcd", 0x99AABBCCDDEEFF00)
EVERYWHERE = keyspace(b"index", frozenset(range(PARTITIONS)))

versions = st.binary(min_size=20, max_size=20)
records = st.builds(
    Record,
    versions,
    st.integers(0, 255),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=60),
)
keys = st.binary(min_size=1, max_size=60)
indexes = st.binary(min_size=1, max_size=64)


def test_layout_on_disk_is_stable() -> None:
    [(storage_key, record)] = seal(EVERYWHERE, [b"key"], head(VERSION, 0, 5), [b"\xa5value"])
    assert storage_key.hex() == "05e305696e6465786b6579"  # partition 1507, 5, "index", "key"
    assert record[8:].hex() == VERSION.hex() + "00" + "0000000000000005" + "a576616c7565"
    assert record[:8].hex() == "5f052abf7f92cabc"


@given(indexes, keys, records)
def test_record_round_trip(index: bytes, key: bytes, record: Record) -> None:
    built = build_record(index, key, record)
    assert open_record(built) == record
    space = keyspace(index, frozenset(range(PARTITIONS)))
    assert is_intact(built, key, space.salt)
    [storage_key] = locate(space, [key])
    assert is_sound(storage_key, built)
    assert split_storage_key(storage_key) == (partition_of(key), index, key)


@given(keys, records)
def test_seal_equals_build(key: bytes, record: Record) -> None:
    heads = head(record.version, record.flags, record.expiry)
    [(_, sealed)] = seal(EVERYWHERE, [key], heads, [record.payload])
    assert sealed == build_record(b"index", key, record)


@settings(max_examples=12)
@given(keys, records)
def test_every_flipped_bit_is_detected(key: bytes, record: Record) -> None:
    built = build_record(b"index", key, record)
    for bit in range(len(built) * 8):
        corrupt = bytearray(built)
        corrupt[bit // 8] ^= 1 << bit % 8
        assert not is_intact(bytes(corrupt), key, EVERYWHERE.salt)


@given(keys, records, st.data())
def test_truncated_record_is_detected(key: bytes, record: Record, data: st.DataObject) -> None:
    built = build_record(b"index", key, record)
    short = built[: data.draw(st.integers(0, len(built) - 1))]
    assert not is_intact(short, key, EVERYWHERE.salt)
    assert not is_intact(built + b"\0", key, EVERYWHERE.salt)


@given(keys, keys, records)
def test_record_under_another_key_or_index_is_detected(
    key: bytes, other: bytes, record: Record
) -> None:
    built = build_record(b"index", key, record)
    assert is_intact(built, other, EVERYWHERE.salt) == (key == other)
    assert not is_intact(built, key, keyspace(b"other", frozenset()).salt)


def test_open_record_fails_on_short_bytes() -> None:
    with pytest.raises(CorruptRecord, match="36 bytes"):
        open_record(bytes(HEAD_BYTES - 1))


@pytest.mark.parametrize("length", range(9))
def test_truncated_head_is_not_live(length: int) -> None:
    assert not is_live_head(PLAIN[:length], now=5)


@pytest.mark.parametrize(
    ("flags", "expiry", "live"),
    [
        (0, NEVER, True),
        (0, 1001, True),
        (0, 1000, False),
        (0, 999, False),
        (0, 2**64 - 1, True),
        (RecordFlag.TOMBSTONE, NEVER, False),
        (RecordFlag.TOMBSTONE, 2000, False),
        (2, NEVER, True),  # a flag of a later version
    ],
)
def test_is_live_head_for_each_kind_of_record(flags: int, expiry: int, live: bool) -> None:
    record = Record(VERSION, flags, expiry, b"")
    assert record.is_live(1000) == live
    assert is_live_head(head(VERSION, flags, expiry)[20:], 1000) == live


def test_partitions_not_held_are_refused() -> None:
    key = b"key"
    elsewhere = Keyspace(b"index", frozenset(range(PARTITIONS)) - {partition_of(key)})
    with pytest.raises(Misrouted):
        locate(elsewhere, [key])
    with pytest.raises(Misrouted):
        seal(elsewhere, [key], head(VERSION), [b""])
    with pytest.raises(Misrouted):
        elsewhere.prefix(partition_of(key))
    assert elsewhere.prefix((partition_of(key) + 1) % PARTITIONS)


def test_index_is_one_range_of_each_partition() -> None:
    names = [b"a", b"ab", b"b", b"a\x00", b"\xff" * 64]
    ranges = []
    for name in names:
        prefix = keyspace(name, frozenset([7])).prefix(7)
        ranges.append((prefix + b"\x00", prefix + b"\xff" * 400))
    ranges.sort()
    for (_, end), (begin, _) in pairwise(ranges):
        assert end < begin
