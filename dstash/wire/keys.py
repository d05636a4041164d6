"""How a key becomes bytes.

A str key is its UTF-8 form, as it is: the common case costs nothing. The other types begin with
a byte that UTF-8 never uses, so no two keys of different types meet, and keys of one type sort
as one expects::

    str      UTF-8
    int      0xFE, then n + 2**63 as 9 bytes, big-endian   (-2**63 <= n < 2**64)
    bytes    0xFF, then the bytes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dstash.errors import LimitError, ProtocolError, UnsupportedType
from dstash.limits import MAX_KEY_BYTES

Key = str | bytes | int

#: What a batch of puts may be given as. (A ``Mapping`` is not covariant in its keys.)
Entries = (
    Mapping[str, Any]
    | Mapping[bytes, Any]
    | Mapping[int, Any]
    | Mapping[Key, Any]
    | Iterable[tuple[Key, Any]]
)

_ALLOWED_LENGTHS: Final = frozenset(range(1, MAX_KEY_BYTES + 1))
_INT_MARK: Final = b"\xfe"
_BYTES_MARK: Final = b"\xff"
_INT_BYTES: Final = 10
_INT_SHIFT: Final = 1 << 63
_INT_LOW: Final = -(1 << 63)
_INT_HIGH: Final = (1 << 64) - 1


def encode_keys(keys: Sequence[Key]) -> list[bytes]:
    """Encode many keys; ``LimitError`` or ``UnsupportedType`` names the first bad one."""
    try:
        encoded = list(map(str.encode, keys))  # type: ignore[arg-type]  # TypeError is the slow path
    except (TypeError, UnicodeEncodeError):
        return [encode_key(key) for key in keys]
    if not _ALLOWED_LENGTHS.issuperset(map(len, encoded)):
        for key in keys:
            encode_key(key)
    return encoded


def encode_key(key: Key) -> bytes:
    """Encode one key.

    Raises:
        LimitError: empty, longer than 400 bytes, or an int beyond 64 bits.
        UnsupportedType: neither str, bytes nor int.
    """
    encoded = _encode(key)
    if not key and not isinstance(key, int):
        raise LimitError(f"key is empty; allowed are 1 to {MAX_KEY_BYTES} bytes")
    if len(encoded) > MAX_KEY_BYTES:
        raise LimitError(
            f"key {_shorten(key)} has {len(encoded)} bytes encoded; "
            f"allowed are 1 to {MAX_KEY_BYTES} bytes"
        )
    return encoded


def decode_key(encoded: bytes) -> Key:
    """Return the key that ``encode_key`` was given.

    Raises:
        ProtocolError: no key is encoded so; a client of another language may have stored it.
    """
    if encoded[:1] == _BYTES_MARK:
        return encoded[1:]
    if encoded[:1] == _INT_MARK and len(encoded) == _INT_BYTES:
        number = int.from_bytes(encoded[1:], "big") - _INT_SHIFT
        if number <= _INT_HIGH:
            return number
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"a stored key is neither str, bytes nor int: {encoded!r}") from None


class ForeignKey(bytes):
    """A key as it is stored that no str, bytes or int is encoded as.

    It equals no other kind of key, a bytes key of the same bytes included.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForeignKey) and bytes.__eq__(self, other)

    __hash__ = bytes.__hash__


def decode_any_key(encoded: bytes) -> Key:
    """Like ``decode_key``, with a ``ForeignKey`` for what that refuses."""
    try:
        return decode_key(encoded)
    except ProtocolError:
        return ForeignKey(encoded)


def expect_own(keys: Iterable[Key]) -> None:
    """Raise the error of ``decode_key`` if there is a ``ForeignKey`` among keys."""
    for key in keys:
        if isinstance(key, ForeignKey):
            decode_key(bytes(key))


def encode_prefix(prefix: str | bytes) -> bytes:
    """Encode the beginning of keys: all keys of that type that start so. ``""`` is every key."""
    if isinstance(prefix, str | bytes):
        return _encode(prefix)
    raise UnsupportedType(f"prefix must be str or bytes, not {type(prefix).__name__}")


def _encode(key: Key) -> bytes:
    if isinstance(key, str):
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise LimitError(f"key {_shorten(key)} is not valid Unicode text") from None
    if isinstance(key, ForeignKey):
        return bytes(key)
    if isinstance(key, bytes):
        return _BYTES_MARK + key
    if isinstance(key, int) and not isinstance(key, bool):
        if not _INT_LOW <= key <= _INT_HIGH:
            raise LimitError(f"key {_shorten(key)} is out of range; allowed are -2**63 to 2**64-1")
        return _INT_MARK + (key + _INT_SHIFT).to_bytes(9, "big")
    raise UnsupportedType(f"key must be str, bytes or int, not {type(key).__name__}")


def _shorten(key: Key) -> str:
    text = repr(key) if not isinstance(key, int) else f"{key:#x}"
    return text if len(text) <= 40 else f"{text[:37]}..."
