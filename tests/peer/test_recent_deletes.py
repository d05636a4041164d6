"""A delete that is sent again gets the same answer, within bounds."""

from __future__ import annotations

from dstash.peer.recent_deletes import RecentDeletes

NOW = 1_700_000_000_000


def answer(recent: RecentDeletes, version: bytes, keys: str, existed: str, now: int = NOW) -> str:
    flags = bytearray(int(flag) for flag in existed)
    recent.answer(version, [key.encode() for key in keys], flags, now)
    return "".join(map(str, flags))


def test_answer_repeats_what_the_same_version_found() -> None:
    recent = RecentDeletes()
    assert answer(recent, b"v1", "abc", "101") == "101"
    assert answer(recent, b"v1", "cba", "000") == "101"


def test_answer_of_another_version_is_not_repeated() -> None:
    recent = RecentDeletes()
    answer(recent, b"v1", "a", "1")
    assert answer(recent, b"v2", "a", "0") == "0"


def test_answer_of_an_earlier_version_is_repeated_where_it_is_named() -> None:
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


def test_deletes_that_found_nothing_take_no_room() -> None:
    recent = RecentDeletes()
    answer(recent, b"v1", "abc", "000")
    assert len(recent) == 0
