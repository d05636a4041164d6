"""Repeated deletes get the same answer, within limits."""

from __future__ import annotations

from dstash.limits import PARTITIONS
from dstash.peer.commits.recent_deletes import RecentDeletes
from dstash.store.record import RecordFlag, head, keyspace
from dstash.store.sealing import seal
from dstash.version import pack

NOW = 1_700_000_000_000
SPACE = keyspace(b"i", frozenset(range(PARTITIONS)))
VERSION = pack(NOW << 16, b"writer01", 0)


def answer(recent: RecentDeletes, version: bytes, keys: str, existed: str, now: int = NOW) -> str:
    flags = bytearray(int(flag) for flag in existed)
    recent.answer(version, [key.encode() for key in keys], flags, now)
    return "".join(map(str, flags))


def test_answer_repeats_result_of_the_same_version() -> None:
    recent = RecentDeletes()
    assert answer(recent, b"v1", "abc", "101") == "101"
    assert answer(recent, b"v1", "cba", "000") == "101"


def test_answer_of_another_version_is_not_repeated() -> None:
    recent = RecentDeletes()
    answer(recent, b"v1", "a", "1")
    assert answer(recent, b"v2", "a", "0") == "0"


def test_answer_repeats_result_of_named_earlier_version() -> None:
    recent = RecentDeletes()
    answer(recent, b"v1", "a", "1")
    flags = bytearray(1)
    recent.answer(b"v2", [b"a"], flags, NOW, [b"v1"])
    assert flags == b"\1"


def test_answer_is_forgotten_after_its_age() -> None:
    recent = RecentDeletes(max_age_ms=1000)
    answer(recent, b"v1", "a", "1")
    answer(recent, b"v2", "b", "1", NOW + 1001)
    assert answer(recent, b"v1", "a", "0", NOW + 1001) == "0"
    assert len(recent) == 1


def test_oldest_versions_are_forgotten_beyond_the_number_of_keys() -> None:
    recent = RecentDeletes(max_keys=3)
    for version, keys in ((b"v1", "ab"), (b"v2", "cd"), (b"v3", "e")):
        answer(recent, version, keys, "1" * len(keys))
        assert len(recent) <= 3
    assert answer(recent, b"v1", "ab", "00") == "00"
    assert answer(recent, b"v2", "cd", "00") == "11"


def test_deletes_of_missing_keys_use_no_memory() -> None:
    recent = RecentDeletes()
    answer(recent, b"v1", "abc", "000")
    assert len(recent) == 0


def test_answer_includes_what_tombstone_of_another_replica_replaced() -> None:
    recent = RecentDeletes()
    tombstone = seal(SPACE, [b"a"], head(VERSION, RecordFlag.TOMBSTONE), [b""])
    live = seal(SPACE, [b"b"], head(VERSION, 0), [b"x"])
    recent.note(tombstone + live, bytearray([1, 1]), NOW)
    assert len(recent) == 1, "a live record that replaces another one is no delete"
    flags = bytearray(2)
    recent.answer(VERSION, [tombstone[0][0], live[0][0]], flags, NOW)
    assert flags == b"\1\0"


def test_tombstones_that_replaced_nothing_use_no_memory() -> None:
    recent = RecentDeletes()
    recent.note(seal(SPACE, [b"a"], head(VERSION, RecordFlag.TOMBSTONE), [b""]), bytearray(1), NOW)
    assert len(recent) == 0
