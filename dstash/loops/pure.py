"""Loops over many keys and records, in Python.

They take most of the processor time of a batch. ``_compiled.c`` has the same functions for machines
with a C compiler, several times as fast; ``dstash.loops`` exports those that are there. This module
defines what they do: ``tests/loops`` runs every test with both, and compares them.

Keys are encoded (bytes), or plain texts, whose characters are their encoded form; see
``are_plain``. Places are positions in a batch, as 32-bit numbers in the byte order of the machine.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any, Final, TypeVar

import msgpack
from xxhash import xxh3_64_digest, xxh3_64_intdigest, xxh3_128_intdigest

from dstash.limits import MAX_KEY_BYTES
from dstash.store.record import (
    ABSENT_HEAD,
    HEAD_BYTES,
    PLAIN,
    VERSION_END,
    is_intact,
    is_live_head,
    is_sound,
)
from dstash.types import RecordFlag

T = TypeVar("T")

_NIL: Final = b"\xc0"
_SUM_MASK: Final = (1 << 128) - 1
_REGISTER: Final = RecordFlag.REGISTER.value


# -- of clients


def are_plain(keys: Sequence[object]) -> bool:
    """Whether all keys are ASCII texts of 1 to 400 characters."""
    return all(type(key) is str and key.isascii() and 0 < len(key) <= MAX_KEY_BYTES for key in keys)


def sort_places(keys: Sequence[Any], lanes: bytes, count: int) -> tuple[bytes, list[int]]:
    """Sort the places of keys by the lanes of their partitions; in a lane, they keep their order.

    Args:
        keys: encoded or plain.
        lanes: the lane of each partition, as 16-bit numbers in the byte order of the machine.
        count: the number of lanes.

    Returns:
        The places, and for each lane how many places are in it and the lanes before it.
    """
    numbers = memoryview(lanes).cast("H")
    mask = len(numbers) - 1
    by_lane: list[list[int]] = [[] for _ in range(count)]
    for place, digest in enumerate(map(xxh3_64_intdigest, as_bytes(keys))):
        by_lane[numbers[digest & mask]].append(place)
    return pack_places(chain.from_iterable(by_lane)), list(accumulate(map(len, by_lane)))


def as_bytes(keys: Sequence[Any]) -> Sequence[bytes]:
    """Return encoded keys as they are, and plain keys encoded."""
    return [key.encode() for key in keys] if keys and type(keys[0]) is str else keys


def pack_places(places: Any) -> bytes:
    """Return places as bytes."""
    return array("I", places).tobytes()


def pick(items: Sequence[T], places: bytes | memoryview) -> list[T]:
    """Return the items at these places."""
    return [items[place] for place in _numbers(places)]


def pack_keys(keys: Sequence[Any], places: bytes | memoryview) -> bytes:
    """Return the body frame of the keys at these places: a msgpack array of byte strings."""
    packed: bytes = msgpack.packb(as_bytes(pick(keys, places)))
    return packed


def put_at(values: list[Any], places: bytes | memoryview, items: Sequence[Any]) -> None:
    """Put items into a list, each at its place."""
    for place, item in zip(_numbers(places), items, strict=True):
        values[place] = item


def add_pairs(found: dict[Any, Any], keys: Sequence[Any], values: Sequence[Any]) -> None:
    """Add as many keys as values to a dictionary."""
    found.update(zip(keys, values, strict=True))


def _numbers(places: bytes | memoryview) -> array[int]:
    numbers = array("I")
    numbers.frombytes(bytes(places))
    return numbers


# -- of peers


def locate(prefixes: list[bytes | None], keys: Sequence[bytes]) -> list[bytes]:
    """Return the storage keys of keys.

    Raises:
        TypeError: a prefix is None, because its partition is not held here.
    """
    mask = len(prefixes) - 1
    return [prefixes[xxh3_64_intdigest(key) & mask] + key for key in keys]  # type: ignore[operator]  # None raises it


def seal(
    prefixes: list[bytes | None],
    salt: int,
    keys: Sequence[bytes],
    head: bytes,
    payloads: Sequence[bytes],
) -> list[tuple[bytes, bytes]]:
    """Return (storage key, record) pairs for keys whose records share one head.

    Args:
        prefixes: of storage keys, by partition, as many as a power of two; see ``Keyspace``.
        salt: the hash of the index.
        keys: encoded.
        head: what is between checksum and payload.
        payloads: as many as keys.

    Raises:
        TypeError: a prefix is None, because its partition is not held here.
    """
    sealed, mask = [], len(prefixes) - 1
    for key, payload in zip(keys, payloads, strict=True):
        number = xxh3_64_intdigest(key)
        body = head + payload
        storage_key = prefixes[number & mask] + key  # type: ignore[operator]  # None raises it
        sealed.append((storage_key, xxh3_64_digest(body, number ^ salt) + body))
    return sealed


def are_sound(entries: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether all (storage key, record) pairs have their checksums."""
    return all(is_sound(storage_key, record) for storage_key, record in entries)


def sum_hashes(
    entries: Sequence[tuple[bytes, bytes]], begin: int, end: int
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Add up the hashes of sound live records without expiry.

    Args:
        entries: (storage key, record) pairs.
        begin: of the part of each record's head that is hashed, after its storage key.
        end: of that part.

    Returns:
        The sum modulo 2**128 as 16 bytes, and the other entries, which are not added.
    """
    total = 0
    others = []
    for entry in entries:
        storage_key, record = entry
        is_plain = len(record) > HEAD_BYTES and record[VERSION_END:HEAD_BYTES] == PLAIN
        if is_plain and is_sound(storage_key, record):
            total += xxh3_128_intdigest(storage_key + record[begin:end])
        else:
            others.append(entry)
    return (total & _SUM_MASK).to_bytes(16, "big"), others


def total_size(records: Sequence[bytes | None]) -> int:
    """Return how many bytes records have."""
    return sum(map(len, filter(None, records)))


def join_live(
    salt: int,
    keys: Sequence[bytes],
    records: Sequence[bytes | None],
    now: int,
    value_of: Callable[[bytes], bytes],
) -> tuple[bytes, list[int], list[int]]:
    """Join the payloads of records to a msgpack array, with nil for each key without a live record.

    Args:
        salt: the hash of the index.
        keys: of the records; there may be more keys than records.
        records: as stored, None for no record.
        now: milliseconds since 1970.
        value_of: returns the value in the payload of a register.

    Returns:
        The array, and the positions of the missing and of the corrupt records.
    """
    payloads: list[bytes] = []
    missing: list[int] = []
    corrupt: list[int] = []
    for place, (key, record) in enumerate(zip(keys, records, strict=False)):
        payload = _NIL
        if record is None:
            missing.append(place)
        elif not is_intact(record, key, salt):
            corrupt.append(place)
        elif (tail := record[VERSION_END:HEAD_BYTES]) == PLAIN or is_live_head(tail, now):
            payload = record[HEAD_BYTES:]
            if tail[0] & _REGISTER:
                payload = value_of(payload)
        else:
            missing.append(place)
        payloads.append(payload)
    return _array_head(len(payloads)) + b"".join(payloads), missing, corrupt


def join_heads(records: Sequence[bytes | None], begin: int) -> bytes:
    """Join the parts of records from ``begin`` to the end of the version, which digests cover."""
    hashed = slice(begin, VERSION_END)
    absent = ABSENT_HEAD[hashed]
    return b"".join([absent if record is None else record[hashed] for record in records])


def read_heads(
    get: Callable[[bytes], bytes | None],
    storage_keys: Sequence[bytes],
    most_bytes: int,
    begin: int,
    judge: Callable[[int, bytes], bytes],
    missing: list[int],
) -> bytes:
    """Read records and join the parts of their heads that digests cover; see ``join_heads``.

    Args:
        get: returns the record of a storage key.
        storage_keys: of the records.
        most_bytes: of records to read; at most one record more is read.
        begin: of the parts.
        judge: returns the head to use for a record that is not a live value without expiry, given
            its position.
        missing: gets the positions of keys without a record, whose head is ``ABSENT_HEAD``.
    """
    heads: list[bytes] = []
    weight = 0
    for place, storage_key in enumerate(storage_keys):
        if weight > most_bytes:
            break
        record = get(storage_key)
        if record is None:
            missing.append(place)
            heads.append(ABSENT_HEAD)
            continue
        weight += len(record)
        is_plain = len(record) > HEAD_BYTES and record[VERSION_END:HEAD_BYTES] == PLAIN
        heads.append(record[:HEAD_BYTES] if is_plain else judge(place, record))
    return b"".join([head[begin:VERSION_END] for head in heads])


# -- of both


def unchecked(payloads: Sequence[bytes]) -> list[int]:
    """Return the positions of payloads whose first bytes do not show that they are well-formed.

    A payload needs no further check if it is one number, nil, boolean, short text or short byte
    string, by its first byte and its size.
    """
    try:
        return [
            place
            for place, payload in enumerate(payloads)
            if _LENGTHS[payload[0]] != len(payload)
            and (payload[0] not in _SHORT or payload[1] + 2 != len(payload))
        ]
    except IndexError:  # a payload is empty, or ends before its length
        return [place for place, payload in enumerate(payloads) if not _is_scalar(payload)]


def _is_scalar(payload: bytes) -> bool:
    size = len(payload)
    if not size:
        return False
    kind = payload[0]
    return _LENGTHS[kind] == size or (kind in _SHORT and size > 1 and payload[1] + 2 == size)


def _length_of(kind: int) -> int:
    """Return the bytes of an object with that first byte; 0 if its length varies."""
    if kind < 0x80 or kind >= 0xE0 or kind in (0xC0, 0xC2, 0xC3):  # small integers, nil, booleans
        return 1
    if 0xA0 <= kind < 0xC0:
        return 1 + (kind & 0x1F)
    numbers = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
    numbers |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
    return 1 + numbers[kind] if kind in numbers else 0


#: Length by first byte.
_LENGTHS: Final = tuple(map(_length_of, range(256)))
#: First bytes of byte strings and texts with the length in the second byte.
_SHORT: Final = frozenset((0xC4, 0xD9))


def _array_head(length: int) -> bytes:
    head: bytes = msgpack.Packer().pack_array_header(length)
    return head
