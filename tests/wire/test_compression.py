"""Compressed values: round trips, their form on disk, and refusals of corrupt ones."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dstash.errors import CorruptRecord, DStashError, LimitError
from dstash.limits import MAX_VALUE_BYTES
from dstash.wire import codec
from dstash.wire.values import TypeRegistry, Undecodable
from dstash.wire.values.compression import COMPRESSED_CODE, LEAST_BYTES
from tests.harness.memory import at_most
from tests.wire.test_values import values

PLAIN = TypeRegistry()
ZSTD = TypeRegistry("zstd")
TEXT = "the same again, " * 20


def encode(value: Any) -> bytes:
    """Return the payload that a client with compression stores."""
    return ZSTD.encode_entries(["k"], [value])[0]


def frame(payload: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(payload)


def extension(data: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(COMPRESSED_CODE, data))
    return packed


@given(st.lists(values | st.tuples(st.just(TEXT), values), max_size=8))
def test_round_trip_between_clients_with_and_without(many: list[Any]) -> None:
    payloads = ZSTD.encode_entries(range(len(many)), many)
    assert payloads == [
        min(plain, extension(frame(plain)), key=len) if len(plain) >= LEAST_BYTES else plain
        for plain in PLAIN.encode_many(many)
    ]
    joined = codec.join_payloads(payloads)
    for reader in (PLAIN, ZSTD):
        bad: dict[Any, Undecodable] = {}
        read = [
            reader.decode_array(joined),
            reader.decode_values(joined, range(len(many)), bad),
            [reader.decode(payload) for payload in payloads],
        ]
        assert read == [many] * 3
        assert [list(map(type, each)) for each in read] == [list(map(type, many))] * 3
        assert not bad


@pytest.mark.parametrize(("count", "mark"), [(50, 0xC7), (1000, 0xC8), (50_000, 0xC9)])
def test_form_on_disk_is_an_extension_with_a_frame(count: int, mark: int) -> None:
    value = [f"{number * number}," for number in range(count)]
    payload = encode(value)
    assert payload[0] == mark
    found = msgpack.unpackb(payload)
    assert (found.code, found.data[:4]) == (COMPRESSED_CODE, b"\x28\xb5\x2f\xfd")
    assert payload == extension(found.data)
    assert zstandard.decompress(found.data) == PLAIN.encode(value)
    assert PLAIN.decode(payload) == value


@pytest.mark.parametrize(
    "value",
    [0, -1, 2**64 - 1, 1.5, None, True, "", "a" * 120, bytes(120), bytes(range(256)), [1] * 100],
)
def test_numbers_and_what_would_not_shrink_are_stored_plain(value: Any) -> None:
    assert encode(value) == PLAIN.encode(value)


def test_encode_of_the_registry_does_not_compress() -> None:
    assert ZSTD.encode(TEXT) == msgpack.packb(TEXT) == PLAIN.encode_entries(["k"], [TEXT])[0]


def test_size_limit_applies_before_compression() -> None:
    largest = bytes(MAX_VALUE_BYTES - 5)
    assert len(encode(largest)) < 1000
    assert PLAIN.decode(encode(largest)) == largest
    with pytest.raises(
        LimitError, match=rf"key 'k': .* {MAX_VALUE_BYTES + 1} .* {MAX_VALUE_BYTES}"
    ):
        encode(largest + b"\0")


BOMB = frame(bytes(64 << 20))
LIAR = bytearray(frame(bytes(MAX_VALUE_BYTES)))
LIAR[6:10] = (MAX_VALUE_BYTES + 1).to_bytes(4, "little")
CORRUPT = {
    "too long": (BOMB, f"has {64 << 20} bytes; allowed are {MAX_VALUE_BYTES}"),
    "claims more": (bytes(LIAR), f"has {MAX_VALUE_BYTES + 1} bytes"),
    "without size": (frame(bytes(1000), write_content_size=False), "does not state its size"),
    "truncated": (frame(PLAIN.encode(TEXT))[:-1], "is corrupt: "),
    "longer": (frame(PLAIN.encode(TEXT)) + b"x", "is corrupt: "),
    "two frames": (frame(b"\xc0") * 2, "is corrupt: "),
    "no frame": (b"what is this?", "is corrupt: "),
    "empty": (b"", "is corrupt: "),
    "two values": (frame(b"\xc0\xc0"), "stored value cannot be decoded: "),
    "nothing": (frame(b""), "stored value cannot be decoded: "),
    "compressed twice": (frame(extension(frame(b"\xc0"))), "contains a compressed part"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_decode_values_isolates_corrupt_frame(name: str) -> None:
    data, text = CORRUPT[name]
    joined = codec.join_payloads([extension(data), encode(TEXT), b"\x07"])
    bad: dict[Any, Undecodable] = {}
    with at_most(32):
        found = PLAIN.decode_values(joined, ["bad", "good", "number"], bad)
    assert found == [bad["bad"], TEXT, 7]
    assert (bad["bad"].key, bad["bad"].payload) == ("bad", extension(data))
    assert text in bad["bad"].reason
    with pytest.raises(CorruptRecord):
        PLAIN.decode(extension(data))


def part(kind: str) -> bytes:
    """Return a value with a compressed part."""
    inner = extension(frame(b"\xc0"))
    tuple_of_two = msgpack.packb(msgpack.ExtType(108, b"\x92\xc0" + inner))
    parts = {
        "list": b"\x91" + inner,
        "map": b"\x81\xa1k" + inner,
        "key of map": b"\x81" + inner + b"\xc0",
        "tuple": tuple_of_two,
        "list in list": b"\x91\x91" + inner,
        "frame": extension(frame(b"\x91" + inner)),
    }
    return parts[kind]


@pytest.mark.parametrize("kind", ["list", "map", "key of map", "tuple", "list in list", "frame"])
def test_compressed_part_of_a_value_is_refused(kind: str) -> None:
    bad: dict[Any, Undecodable] = {}
    joined = codec.join_payloads([part(kind), encode(TEXT)])
    assert PLAIN.decode_values(joined, ["bad", "good"], bad)[1] == TEXT
    assert set(bad) == {"bad"}
    assert "contains a compressed part" in bad["bad"].reason


@given(st.binary(max_size=60))
def test_garbage_in_a_frame_returns_value_or_dstash_error(data: bytes) -> None:
    with contextlib.suppress(DStashError):
        PLAIN.decode(extension(data))
    with contextlib.suppress(DStashError):
        PLAIN.decode(extension(b"\x28\xb5\x2f\xfd" + data))


def test_threads_share_a_registry() -> None:
    def work(number: int) -> bool:
        # Large ones, because zstd must be at work in several threads at once.
        many = [f"{number} {place} {TEXT * 500}" for place in range(20)]
        return ZSTD.decode_array(codec.join_payloads(ZSTD.encode_entries(many, many))) == many

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_library_is_loaded_only_for_what_is_compressed() -> None:
    script = (
        "import sys, dstash\n"
        "from dstash.wire.values import TypeRegistry\n"
        "with dstash.Client('127.0.0.1:1', compression='zstd') as client:\n"
        "    [payload] = client.types.encode_entries(['k'], ['short'])\n"
        "    assert client.types.decode(payload) == 'short'\n"
        "    print('zstandard' in sys.modules)\n"
        "    client.types.encode_entries(['k'], ['long' * 100])\n"
        "    print('zstandard' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\nTrue\n", "")
