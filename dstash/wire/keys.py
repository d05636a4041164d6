"""The encoding of keys as bytes.

A str key is encoded as plain UTF-8: the common case adds no bytes. The other types begin with a
byte that UTF-8 never uses, so keys of different types never collide, and keys of one type keep
their order::

    str      UTF-8
    int      0xFE, then n + 2**63 as 9 bytes, big-endian   (-2**63 <= n < 2**64)
    bytes    0xFF, then the bytes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dstash import loops
from dstash.errors import LimitError, ProtocolError, UnsupportedType
from dstash.limits import MAX_KEY_BYTES

Key = str | bytes | int

#: The argument types of a batch put. (A ``Mapping`` is not covariant in its keys.)
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
    """Encode many keys; ``LimitError`` or ``UnsupportedType`` names the first bad key."""
    try:
        encoded = list(map(str.encode, keys))  # type: ignore[arg-type]  # TypeError is the slow path
    except (TypeError, UnicodeEncodeError):
        return [encode_key(key) for key in keys]
    if not _ALLOWED_LENGTHS.issuperset(map(len, encoded)):
        for key in keys:
            encode_key(key)
    return encoded


def as_encoded(keys: Sequence[Key]) -> Sequence[Any]:
    """Return keys as they are if they are all plain texts (``loops.are_plain``), else encoded.

    The characters of a plain text are its encoded form.

    Raises:
        LimitError, UnsupportedType: for the first bad key.
    """
    return keys if loops.are_plain(keys) else encode_keys(keys)


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
            f"key {show_key(key)} has {len(encoded)} bytes encoded; "
            f"allowed are 1 to {MAX_KEY_BYTES} bytes"
        )
    return encoded


def decode_key(encoded: bytes) -> Key:
    """Return the key that ``encode_key`` was given.

    Raises:
        ProtocolError: the bytes encode no key; a client in another language may have stored them.
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
    """The stored bytes of a key that encode no str, bytes or int.

    It differs from every other type of key, even from a bytes key with the same bytes.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForeignKey) and bytes.__eq__(self, other)

    __hash__ = bytes.__hash__


def decode_any_key(encoded: bytes) -> Key:
    """Like ``decode_key``, but return a ``ForeignKey`` instead of raising an error."""
    try:
        return decode_key(encoded)
    except ProtocolError:
        return ForeignKey(encoded)


def expect_own(keys: Iterable[Key]) -> None:
    """Raise the error of ``decode_key`` if any of the keys is a ``ForeignKey``."""
    for key in keys:
        if isinstance(key, ForeignKey):
            decode_key(bytes(key))


def encode_prefix(prefix: str | bytes) -> bytes:
    """Encode a prefix of keys of its type. ``""`` matches every key."""
    if isinstance(prefix, str | bytes):
        return _encode(prefix)
    raise UnsupportedType(f"prefix must be str or bytes, not {type(prefix).__name__}")


def _encode(key: Key) -> bytes:
    if isinstance(key, str):
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise LimitError(f"key {show_key(key)} is not valid Unicode text") from None
    if isinstance(key, ForeignKey):
        return bytes(key)
    if isinstance(key, bytes):
        return _BYTES_MARK + key
    if isinstance(key, int) and not isinstance(key, bool):
        if not _INT_LOW <= key <= _INT_HIGH:
            raise LimitError(f"key {show_key(key)} is out of range; allowed are -2**63 to 2**64-1")
        return _INT_MARK + (key + _INT_SHIFT).to_bytes(9, "big")
    kind = type(key).__name__
    raise UnsupportedType(f"key must be str, bytes or int, not {kind}: {show_key(key)}")


def show_key(key: object) -> str:
    """Return a key as short text for messages, whether it is valid or not."""
    is_huge = isinstance(key, int) and not _INT_LOW <= key <= _INT_HIGH
    text = f"{key:#x}" if is_huge else repr(key)
    return text if len(text) <= 40 else f"{text[:37]}..."
