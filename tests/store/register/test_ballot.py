"""Promises on disk, and what they forbid."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dstash.store.register.ballot import (
    Promise,
    is_register_key,
    is_rival,
    is_sound_promise,
    pack_promise,
    registers_between,
    round_of,
    unpack_promise,
)
from dstash.version import pack, stamp_at
from tests.store.register.parts import STORAGE_KEY, A, B


@pytest.mark.parametrize(
    ("round_", "writer", "forbidden"),
    [(9, A, True), (9, B, True), (10, A, False), (10, B, True), (11, B, False)],
)
def test_promise_forbids_lower_rounds_and_other_writers_of_its_round(
    round_: int, writer: bytes, forbidden: bool
) -> None:
    assert Promise(10, A).forbids(pack(stamp_at(round_, 5), writer)) is forbidden


def test_stored_promise_is_read_again() -> None:
    stored = pack_promise(STORAGE_KEY, Promise(1 << 47, B))
    assert len(stored) == 20
    assert unpack_promise(STORAGE_KEY, stored, 0) == Promise(1 << 47, B)


@pytest.mark.parametrize("place", range(20))
def test_corrupt_promise_forbids_everything_up_to_the_bound(place: int) -> None:
    stored = bytearray(pack_promise(STORAGE_KEY, Promise(10, A)))
    stored[place] ^= 1
    assert not is_sound_promise(STORAGE_KEY, bytes(stored))
    promise = unpack_promise(STORAGE_KEY, bytes(stored), stamp_at(500, 7))
    assert promise.forbids(pack(stamp_at(500, 9), A))
    assert not promise.forbids(pack(stamp_at(501), A))


def test_promise_under_another_key_is_corrupt() -> None:
    assert not is_sound_promise(b"\0\0\1@other", pack_promise(STORAGE_KEY, Promise(10, A)))


def test_versions_of_two_writers_in_one_round_are_rivals() -> None:
    assert is_rival(pack(stamp_at(10, 1), A), pack(stamp_at(10, 2), B))
    assert not is_rival(pack(stamp_at(10, 1), A), pack(stamp_at(10, 2), A))
    assert not is_rival(pack(stamp_at(10, 1), A), pack(stamp_at(11, 1), B))
    assert round_of(pack(stamp_at(10, 1), A)) == 10


@pytest.mark.parametrize(
    ("storage_key", "expected"),
    [(b"\0\0\2@ikey", True), (b"\0\0\1ikey", False), (b"\0\0\2i@key", False), (b"@@\1@k", True)],
)
def test_name_of_the_index_decides(storage_key: bytes, expected: bool) -> None:
    assert is_register_key(storage_key) is expected


@pytest.mark.parametrize("begin", [0, 1, 2, 3, 4, 5, 6, 7])
def test_registers_between_finds_only_indexes_with_registers(begin: int) -> None:
    names = [b"\x01@", b"\x01a", b"\x02!x", b"\x02@r", b"\x02@s", b"\x02rr", b"\x03@rr"]
    keys = [b"\0\5" + name + b"key" for name in [*names, b"\xff@" + 254 * b"x"]]

    def walk(low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key in keys:
            if low <= key < high:
                yield key, b"record"

    found = [key for key, _ in registers_between(walk, keys[begin], b"\0\6")]
    assert found == [key for key in keys[begin:] if is_register_key(key)]
