"""Keys: unique and stable encodings that sort like the keys."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.errors import LimitError, ProtocolError, UnsupportedType
from dstash.limits import MAX_KEY_BYTES
from dstash.wire.keys import Key, decode_key, encode_key, encode_keys, encode_prefix

keys = (
    st.text(min_size=1, max_size=80)
    | st.binary(min_size=1, max_size=MAX_KEY_BYTES - 1)
    | st.integers(-(2**63), 2**64 - 1)
)


@given(keys)
def test_keys_round_trip(key: Key) -> None:
    encoded = encode_key(key)
    assert decode_key(encoded) == key
    assert type(decode_key(encoded)) is type(key)
    assert encode_keys([key]) == [encoded]
    assert 1 <= len(encoded) <= MAX_KEY_BYTES


@given(keys, keys)
def test_different_keys_have_different_encodings(first: Key, second: Key) -> None:
    assert (encode_key(first) == encode_key(second)) == (
        first == second and type(first) is type(second)
    )


@given(*[st.integers(-(2**63), 2**64 - 1)] * 2)
def test_integers_sort_by_size(first: int, second: int) -> None:
    assert (encode_key(first) < encode_key(second)) == (first < second)


@given(*[st.text(min_size=1, max_size=80)] * 2)
def test_text_sorts_by_code_point(first: str, second: str) -> None:
    assert (encode_key(first) < encode_key(second)) == (first < second)


@given(*[st.binary(min_size=1, max_size=80)] * 2)
def test_bytes_sort_as_they_are(first: bytes, second: bytes) -> None:
    assert (encode_key(first) < encode_key(second)) == (first < second)


@given(st.text(max_size=5), st.text(min_size=1, max_size=20))
def test_prefix_is_encoded_as_prefix_of_key(prefix: str, key: str) -> None:
    assert encode_key(key).startswith(encode_prefix(prefix)) == key.startswith(prefix)


def test_bytes_prefix_matches_only_bytes_keys() -> None:
    assert encode_key(b"abc").startswith(encode_prefix(b"ab"))
    assert not encode_key("abc").startswith(encode_prefix(b"ab"))
    assert not encode_key("abc").startswith(encode_prefix(b""))
    with pytest.raises(UnsupportedType, match="int"):
        encode_prefix(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("key", "6b6579"),
        ("ü", "c3bc"),
        (b"key", "ff6b6579"),
        (0, "fe008000000000000000"),
        (-1, "fe007fffffffffffffff"),
        (-(2**63), "fe000000000000000000"),
        (2**64 - 1, "fe017fffffffffffffff"),
    ],
)
def test_encodings_on_disk_are_stable(key: Key, form: str) -> None:
    assert encode_key(key).hex() == form


LONGEST = [
    "x" * MAX_KEY_BYTES,
    "ü" * (MAX_KEY_BYTES // 2),
    b"x" * (MAX_KEY_BYTES - 1),
]


@pytest.mark.parametrize("key", LONGEST)
def test_key_length_limit_is_exact(key: Any) -> None:
    assert len(encode_key(key)) == MAX_KEY_BYTES
    for encode in (encode_key, lambda key: encode_keys([key])):
        with pytest.raises(LimitError, match="allowed are 1 to 400 bytes"):
            encode(key + key[:1])


@pytest.mark.parametrize(
    "bad",
    ["", b"", -(2**63) - 1, 2**64, 1 << 20_000, "\ud800"],
    ids=["empty", "no bytes", "too low", "too high", "huge", "surrogate"],
)
def test_keys_beyond_the_limits_are_refused(bad: Any) -> None:
    for encode in (encode_key, lambda key: encode_keys(["good", key])):
        with pytest.raises(LimitError) as caught:
            encode(bad)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("bad", [None, 1.0, True, False, ("a",), bytearray(b"a"), object])
def test_other_types_are_refused(bad: Any) -> None:
    for encode in (encode_key, lambda key: encode_keys(["good", key])):
        with pytest.raises(UnsupportedType, match="must be str, bytes or int"):
            encode(bad)


@given(st.binary(max_size=20))
def test_decoding_any_bytes_returns_key_or_protocol_error(encoded: bytes) -> None:
    try:
        key = decode_key(encoded)
    except ProtocolError:
        return
    if key or isinstance(key, int):
        assert encode_key(key) == encoded


@pytest.mark.parametrize(
    "encoded",
    [b"\x80", b"a\xc3", b"\xfe", b"\xfe" + bytes(8), b"\xfe\x7f" + bytes(8)],
    ids=bytes.hex,
)
def test_undecodable_key_is_named_in_error(encoded: bytes) -> None:
    with pytest.raises(ProtocolError, match="neither str, bytes nor int"):
        decode_key(encoded)
