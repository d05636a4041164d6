"""msgpack with limits: the only module that decodes bytes from the network.

msgpack raises half a dozen unrelated exception types for malformed input, and builds 75 MB of
empty lists from 1 MiB of input. Here the number of containers is limited, and every failure is a
``ProtocolError``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any, Final

import msgpack

from dstash import loops
from dstash.errors import ProtocolError
from dstash.limits import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_KEY_BYTES,
    MAX_KEYS_PER_FRAME,
    MAX_VALUE_BYTES,
)

#: The exceptions that msgpack raises for malformed input.
_MALFORMED: Final = (
    ValueError,  # covers ExtraData, FormatError, StackError, UnicodeDecodeError, limits passed
    TypeError,
    KeyError,
    OverflowError,
    RecursionError,
    msgpack.exceptions.UnpackException,
)

_MAX_HEADER_CONTAINERS: Final = 20_000

#: A header of at most that many bytes needs no count: it holds fewer containers than bytes.
_SMALL_HEADER_BYTES: Final = 1024


class _Containers:
    """Limits the number of lists and maps while msgpack decodes, before they use memory."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def __call__(self, items: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError("too many lists or maps")
        return items


def unpack_header(frame: bytes) -> list[Any]:
    """Decode a header frame into its list of fields.

    Raises:
        ProtocolError: truncated, oversized, not an array, or with text that is not UTF-8.
    """
    if len(frame) > MAX_HEADER_BYTES:
        raise ProtocolError(f"header of {len(frame)} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if len(frame) <= _SMALL_HEADER_BYTES:
        return _unpack_small(frame)
    count = _Containers(_MAX_HEADER_CONTAINERS + MAX_KEYS_PER_FRAME)
    try:
        fields = msgpack.unpackb(
            frame,
            list_hook=count,
            object_hook=count,
            max_array_len=_MAX_HEADER_CONTAINERS + MAX_KEYS_PER_FRAME,
            max_map_len=_MAX_HEADER_CONTAINERS,
            max_ext_len=0,
            strict_map_key=False,
        )
    except _MALFORMED as error:
        raise ProtocolError(f"header is not valid msgpack: {_reason(error)}") from None
    return _checked(fields)


def _unpack_small(frame: bytes) -> list[Any]:
    """Decode a header that is too short to use much memory."""
    try:
        return _checked(msgpack.unpackb(frame, max_ext_len=0, strict_map_key=False))
    except _MALFORMED as error:
        raise ProtocolError(f"header is not valid msgpack: {_reason(error)}") from None


def _checked(fields: Any) -> list[Any]:
    if type(fields) is not list:
        raise ProtocolError(f"header is a msgpack {type(fields).__name__}, not an array")
    return fields


def pack_header(fields: Sequence[Any]) -> bytes:
    """Encode the fields of a header."""
    return _packb(fields)


def pack_blobs(blobs: Sequence[bytes | None]) -> bytes:
    """Encode a body frame: one array of byte strings (None becomes nil)."""
    return _packb(blobs)


def unpack_keys(frame: bytes) -> list[bytes]:
    """Decode a body frame of encoded keys, each 1 to 400 bytes, at most 65,536 of them."""
    keys = _unpack_blobs(frame, MAX_KEY_BYTES)
    if set(map(type, keys)) - {bytes}:
        raise ProtocolError("a key frame holds something other than byte strings")
    if b"" in keys:
        raise ProtocolError("a key frame holds an empty key")
    return keys


def unpack_blobs(frame: bytes) -> list[bytes]:
    """Decode a body frame of byte strings, each at most a value and its record head."""
    blobs = _unpack_blobs(frame, MAX_VALUE_BYTES + 4096)
    if set(map(type, blobs)) - {bytes}:
        raise ProtocolError("a body frame holds something other than byte strings")
    return blobs


def only_blob(frame: bytes) -> bytes | None:
    """Return the byte string of a body frame that has one, of up to 64 KiB; None for others."""
    # It is encoded as an array of one element, then msgpack's bin 8 or bin 16.
    begin = frame[:2]
    if begin == b"\x91\xc4":
        return frame[3:] if len(frame) > 2 and len(frame) == 3 + frame[2] else None
    if begin == b"\x91\xc5":
        return frame[4:] if len(frame) == 4 + int.from_bytes(frame[2:4]) else None
    return None


def unpack_entries(keys: bytes, records: bytes) -> list[tuple[bytes, bytes]]:
    """Decode two body frames with the same number of byte strings into pairs."""
    unpacked_keys, unpacked_records = unpack_blobs(keys), unpack_blobs(records)
    expect_even(unpacked_keys, unpacked_records)
    return list(zip(unpacked_keys, unpacked_records, strict=True))


def expect_even(keys: Sized, items: Sized) -> None:
    """Raise ``ProtocolError`` unless there are as many items as keys."""
    if len(keys) != len(items):
        raise ProtocolError(f"message has {len(keys)} keys, but {len(items)} values or records")


def unpack_optional_blobs(frame: bytes) -> list[bytes | None]:
    """Decode a body frame of byte strings and nils."""
    blobs: list[bytes | None] = _unpack_blobs(frame, MAX_VALUE_BYTES + 4096)
    if set(map(type, blobs)) - {bytes, type(None)}:
        raise ProtocolError("a body frame holds something other than byte strings and nil")
    return blobs


def join_payloads(payloads: Sequence[bytes]) -> bytes:
    """Join encoded values into one msgpack array, without decoding them."""
    return array_header(len(payloads)) + b"".join(payloads)


def array_header(length: int) -> bytes:
    """Return the msgpack array header for ``length`` elements (msgpack specification)."""
    if length < 16:
        return bytes((0x90 | length,))
    if length < 1 << 16:
        return b"\xdc" + length.to_bytes(2, "big")
    return b"\xdd" + length.to_bytes(4, "big")


def split_payloads(frame: bytes) -> list[bytes]:
    """Return the payloads that were joined into one msgpack array; none if it is malformed."""
    unpacker = msgpack.Unpacker(max_buffer_size=max(1, len(frame)))
    unpacker.feed(frame)
    payloads = []
    try:
        length = unpacker.read_array_header()
        begin = unpacker.tell()
        for _ in range(length):
            unpacker.skip()
            end = unpacker.tell()
            payloads.append(frame[begin:end])
            begin = end
    except _MALFORMED:
        return []
    return payloads


def array_length(frame: bytes) -> int:
    """Return the length in the array header of a body frame; 0 if it is not an array."""
    kind = frame[0] if frame else 0
    if kind & 0xF0 == 0x90:
        return kind & 0x0F
    if kind == 0xDC:
        return int.from_bytes(frame[1:3], "big")
    return int.from_bytes(frame[1:5], "big") if kind == 0xDD else 0


def malformed_payloads(payloads: Sequence[bytes]) -> list[int]:
    """Return the positions of payloads that are not exactly one well-formed msgpack object.

    Peers check this before they store: a value that is too short or too long would shift all
    values after it in a joined reply.
    """
    # Skipping the many plain values with msgpack is several times slower.
    unchecked = [payloads[place] for place in loops.unchecked(payloads)]
    if all(map(_all_well_formed, _chunks(unchecked))):
        return []
    return [place for place, payload in enumerate(payloads) if not _all_well_formed([payload])]


def _chunks(payloads: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Split payloads into chunks of limited size."""
    begin = weight = 0
    for place, payload in enumerate(payloads):
        if place > begin and weight + len(payload) > MAX_FRAME_BYTES:
            yield payloads[begin:place]
            begin, weight = place, 0
        weight += len(payload)
    yield payloads[begin:]


def _all_well_formed(payloads: Sequence[bytes]) -> bool:
    # Each in an array of one element, the nesting depth at which it is decoded later.
    fed = b"".join([b"\x91" + payload for payload in payloads])
    unpacker = msgpack.Unpacker(max_buffer_size=max(1, len(fed)))
    unpacker.feed(fed)
    skip, tell = unpacker.skip, unpacker.tell
    end = 0
    try:
        for payload in payloads:
            end += 1 + len(payload)
            skip()
            if tell() != end:
                return False
    except _MALFORMED:
        return False
    return True


def _unpack_blobs(frame: bytes, largest: int) -> list[Any]:
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(frame)} bytes; at most {MAX_FRAME_BYTES} are allowed")
    try:
        blobs = msgpack.unpackb(
            frame,
            list_hook=_Containers(1),
            max_bin_len=largest,
            max_array_len=MAX_KEYS_PER_FRAME,
            max_str_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
    except _MALFORMED as error:
        raise ProtocolError(f"body frame is not valid: {_reason(error)}") from None
    if type(blobs) is not list:
        raise ProtocolError(f"body frame is a msgpack {type(blobs).__name__}, not an array")
    return blobs


def _packb(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
