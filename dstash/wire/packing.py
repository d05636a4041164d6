"""Lists in the messages between peers: packing, and splitting into parts that fit into one."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from dstash.errors import ProtocolError
from dstash.limits import PARTITIONS
from dstash.version import Stamp

#: Maximum size of a page of records, except for a single larger record.
PAGE_BYTES: Final = 512 * 1024
#: Records pushed or pulled in one message during repair: their commit takes a few milliseconds.
MAX_REPAIR_RECORDS: Final = 150

#: In ``DigestsReply.busy``: the partition was skipped; its digest leaves out corrupt records.
BUSY: Final = 1
CORRUPT: Final = 2

_DIGEST_BYTES: Final = 16

Entries = list[tuple[bytes, bytes]]


def unpack_partitions(packed: bytes) -> list[int]:
    """Return partition numbers from a message; ``ProtocolError`` if they are malformed."""
    if len(packed) % 2 or len(packed) > 2 * PARTITIONS:
        raise ProtocolError("malformed list of partitions; allowed are up to 4096 16-bit numbers")
    numbers = list(struct.unpack(f">{len(packed) // 2}H", packed))
    check_partition(max(numbers, default=0))
    return numbers


def pack_partitions(numbers: Sequence[int]) -> bytes:
    """Return partition numbers packed for a message."""
    return struct.pack(f">{len(numbers)}H", *numbers)


def check_partition(number: int) -> None:
    """Raise ``ProtocolError`` if a number is not a partition."""
    if number >= PARTITIONS:
        raise ProtocolError(f"no partition {number}; allowed are 0 to {PARTITIONS - 1}")


def batches(
    entries: Iterable[tuple[bytes, bytes]],
    max_bytes: int = PAGE_BYTES,
    max_records: int = MAX_REPAIR_RECORDS,
) -> Iterator[Entries]:
    """Split entries into batches; by default into those that fit into one message."""
    batch: Entries = []
    weight = 0
    for entry in entries:
        cost = len(entry[0]) + len(entry[1])
        if batch and (weight + cost > max_bytes or len(batch) >= max_records):
            yield batch
            batch, weight = [], 0
        batch.append(entry)
        weight += cost
    if batch:
        yield batch


def split_digests(packed: bytes, count: int) -> list[bytes]:
    """Return ``count`` digests; ``ProtocolError`` on another number."""
    if len(packed) != count * _DIGEST_BYTES:
        raise ProtocolError(f"a peer sent {len(packed)} bytes of digests for {count} partitions")
    return [digest for (digest,) in struct.iter_unpack(f"{_DIGEST_BYTES}s", packed)]


def split_counts(packed: bytes, count: int) -> list[int]:
    """Return ``count`` record counts; ``ProtocolError`` on another number."""
    if len(packed) != count * 4:
        raise ProtocolError(f"a peer sent {len(packed)} bytes of counts for {count} partitions")
    return [int.from_bytes(packed[begin : begin + 4], "big") for begin in range(0, 4 * count, 4)]


def split_horizons(packed: bytes, count: int) -> list[Stamp]:
    """Return ``count`` horizons; none from a peer of an earlier version."""
    if len(packed) != 8 * count:
        return []
    return list(struct.unpack(f">{count}Q", packed))


def split_flags(packed: bytes, count: int) -> bytes:
    """Return ``count`` flags, a byte each; ``ProtocolError`` on another number."""
    if len(packed) != count:
        raise ProtocolError(f"a peer sent {len(packed)} flags for {count} partitions")
    return packed


def split(packed: bytes, size: int) -> Iterable[bytes]:
    """Yield consecutive pieces of ``size`` bytes."""
    return (packed[begin : begin + size] for begin in range(0, len(packed), size))
