"""The codec: round trips, and limited time and memory for any input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.errors import ProtocolError
from dstash.limits import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_KEY_BYTES,
    MAX_KEYS_PER_FRAME,
    MAX_VALUE_BYTES,
)
from dstash.wire import codec
from tests.harness.memory import at_most

READERS = [
    codec.unpack_header,
    codec.unpack_keys,
    codec.unpack_blobs,
    codec.unpack_optional_blobs,
]
Reader = Callable[[bytes], list[Any]]

_plain = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.text(max_size=9) | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(st.lists(_plain, max_size=12))
def test_header_round_trip(fields: list[Any]) -> None:
    assert codec.unpack_header(codec.pack_header(fields)) == fields


@given(st.lists(st.binary(min_size=1, max_size=MAX_KEY_BYTES)))
def test_keys_round_trip(keys: list[bytes]) -> None:
    assert codec.unpack_keys(codec.pack_blobs(keys)) == keys


@given(st.lists(st.none() | st.binary()))
def test_blobs_round_trip(blobs: list[bytes | None]) -> None:
    assert codec.unpack_optional_blobs(codec.pack_blobs(blobs)) == blobs
    if None not in blobs:
        assert codec.unpack_blobs(codec.pack_blobs(blobs)) == blobs


@pytest.mark.parametrize("read", READERS)
@given(data=st.binary(max_size=300))
def test_garbage_is_refused_or_read(read: Reader, data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert type(read(data)) is list


@pytest.mark.parametrize("read", READERS)
@given(items=st.lists(st.binary(min_size=1, max_size=20), min_size=1), data=st.data())
def test_every_truncation_is_refused(read: Reader, items: list[bytes], data: st.DataObject) -> None:
    frame = codec.pack_blobs(items)
    with pytest.raises(ProtocolError):
        read(frame[: data.draw(st.integers(0, len(frame) - 1))])


@pytest.mark.parametrize("read", READERS)
def test_trailing_bytes_are_refused(read: Reader) -> None:
    with pytest.raises(ProtocolError, match=r"(?i)extra"):
        read(codec.pack_blobs([b"key"]) + b"\x00")


@pytest.mark.parametrize("frame", [b"", b"\xc0", b"\x01", b"\x80", b"\xa1a", b"\xc4\x01a", b"\xc1"])
@pytest.mark.parametrize("read", READERS)
def test_frame_without_array_is_refused(read: Reader, frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(frame)


@pytest.mark.parametrize(
    "items",
    [
        ["text"],
        [1],
        [None],
        [[b"key"]],
        [{}],
        [True],
        [1.5],
        [b"good", "bad"],
        [msgpack.Timestamp(1)],
    ],
    ids=repr,
)
@pytest.mark.parametrize("read", [codec.unpack_keys, codec.unpack_blobs])
def test_only_byte_strings_are_blobs(read: Reader, items: list[Any]) -> None:
    with pytest.raises(ProtocolError):
        read(msgpack.packb(items))


def test_keys_are_neither_empty_nor_too_long() -> None:
    longest = bytes(MAX_KEY_BYTES)
    assert codec.unpack_keys(codec.pack_blobs([longest])) == [longest]
    for bad in (b"", longest + b"x"):
        with pytest.raises(ProtocolError):
            codec.unpack_keys(codec.pack_blobs([b"good", bad]))


def test_entries_with_unequal_counts_are_refused() -> None:
    single, two = codec.pack_blobs([b"k"]), codec.pack_blobs([b"k", b"l"])
    assert codec.unpack_entries(two, two) == [(b"k", b"k"), (b"l", b"l")]
    for keys, records in ((single, two), (two, single)):
        with pytest.raises(ProtocolError, match="values or records"):
            codec.unpack_entries(keys, records)


def test_frame_has_a_limited_number_of_keys() -> None:
    most = [b"k"] * MAX_KEYS_PER_FRAME
    assert len(codec.unpack_keys(codec.pack_blobs(most))) == MAX_KEYS_PER_FRAME
    with pytest.raises(ProtocolError):
        codec.unpack_keys(codec.pack_blobs([*most, b"k"]))


def test_frame_has_a_limited_size() -> None:
    with pytest.raises(ProtocolError, match=str(MAX_FRAME_BYTES)):
        codec.unpack_blobs(bytes(MAX_FRAME_BYTES + 1))
    with pytest.raises(ProtocolError, match=str(MAX_HEADER_BYTES)):
        codec.unpack_header(bytes(MAX_HEADER_BYTES + 1))


def test_value_of_largest_size_passes_with_its_record_head() -> None:
    blob = bytes(MAX_VALUE_BYTES + 37)
    assert codec.unpack_blobs(codec.pack_blobs([blob])) == [blob]


def array(items: int, of: bytes) -> bytes:
    return b"\xdd" + items.to_bytes(4, "big") + of * items


BOMBS = {
    "promised array": b"\xdd\xff\xff\xff\xff",
    "promised map": b"\xdf\xff\xff\xff\xff",
    "promised bytes": b"\xc6\xff\xff\xff\xff",
    "promised text": b"\xdb\xff\xff\xff\xff",
    "promised extension": b"\xc9\xff\xff\xff\xff\x05",
    "empty lists": array(4_000_000, b"\x90"),
    "empty lists in lists": array(48, array(80_000, b"\x90")),
    "empty maps": array(4_000_000, b"\x80"),
    "empty maps in lists": array(48, array(80_000, b"\x80")),
    "lists in lists in lists": array(80_000, b"\x9f" + b"\x91\x90" * 15),
    "promises in promises": b"\xdd\x00\x01\x00\x00" * 1000,
    "deep lists": b"\x91" * 4_000_000,
    "deep maps": b"\x81\x00" * 2_000_000,
    "deep map keys": b"\x81" * 4_000_000,
    "nil": array(4_000_000, b"\xc0"),
    "floats": array(450_000, b"\xcb" + bytes(8)),
    "empty byte strings": array(2_000_000, b"\xc4\x00"),
    "short texts in lists": array(12, array(40_000, b"\xa2\xc3\xa9")),
    "numbers in lists": array(20, array(40_000, b"\xce\xff\xff\xff\xff")),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("read", READERS)
def test_bombs_are_refused_in_little_memory(read: Reader, bomb: str) -> None:
    # With millions of items, time that grew with their square would exceed the limit of a test.
    with at_most(80), contextlib.suppress(ProtocolError):
        read(BOMBS[bomb])


@pytest.mark.parametrize("bomb", [name for name in BOMBS if "list" in name or "deep" in name])
def test_bombs_are_refused_as_payloads(bomb: str) -> None:
    codec.malformed_payloads([BOMBS[bomb]])


def read_alone(payload: bytes) -> None:
    unpacker = msgpack.Unpacker()
    unpacker.feed(payload)
    unpacker.skip()
    assert unpacker.tell() == len(payload)


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=8))
def test_checked_payloads_decode_alone_and_joined(payloads: list[bytes]) -> None:
    bad = set(codec.malformed_payloads(payloads))
    good = [good_payload for place, good_payload in enumerate(payloads) if place not in bad]
    unpacker = msgpack.Unpacker()
    unpacker.feed(codec.join_payloads(good))
    assert unpacker.read_array_header() == len(good)
    for payload in good:
        before = unpacker.tell()
        unpacker.skip()
        assert unpacker.tell() - before == len(payload)
    for place in bad:
        with pytest.raises(Exception):  # noqa: B017, PT011 - any of the many that msgpack has
            read_alone(payloads[place])


def is_read_alone(payload: bytes) -> bool:
    try:
        read_alone(payload)
    except Exception:  # any of the many that msgpack has
        return False
    return True


def test_length_by_first_byte_agrees_with_msgpack() -> None:
    for kind in range(256):
        for length in range(40):
            for payload in (
                bytes([kind]) + bytes(length),
                bytes([kind, max(0, length - 1)]) + bytes(max(0, length - 1)),
            ):
                assert (codec.malformed_payloads([payload]) == []) == is_read_alone(payload), (
                    payload
                )


@pytest.mark.parametrize("length", [0, 1, 15, 16, 65_535, 65_536])
def test_array_headers_are_those_of_msgpack(length: int) -> None:
    packer = msgpack.Packer()
    assert codec.array_header(length) == packer.pack_array_header(length)


def test_payloads_of_any_number_are_checked() -> None:
    payloads = [b"\xc4\xff" + bytes(255)] * 200_000  # more than fits into one message
    assert codec.malformed_payloads(payloads) == []
    assert codec.malformed_payloads([*payloads, b"\xc4"]) == [200_000]
