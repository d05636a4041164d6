"""Digests: whether two replicas of a partition hold the same, in 16 bytes.

A digest is the sum, modulo 2**128, of a hash over all records; sums do not depend on order, so
replicas need not walk in step. Dynamo and Cassandra use Merkle trees for this; with 4096
partitions and 256 buckets in each, two levels do. What is hashed of a record is the ``DigestKind``.

What is dead (a tombstone, or expired) up to the partition's horizon is left out: whether it is
still on disk makes no difference any more. So is a damaged record: it must look missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from dstash.limits import PARTITIONS
from dstash.store.record import (
    CHECKSUM_END,
    EXPIRY_BEGIN,
    HEAD_BYTES,
    PLAIN,
    VERSION_END,
    is_sound,
    version_of,
)
from dstash.types import NEVER, RecordFlag
from dstash.version import WRITE_BYTES, Stamp, newest_stamp, stamp_milliseconds, write_stamp

DIGEST_BYTES: Final = 16
BUCKETS: Final = 256
EMPTY: Final = bytes(DIGEST_BYTES)

#: Flags and expiry of a value that was restored, and never expires.
_RESTORED_FOR_EVER: Final = bytes((RecordFlag.RESTORED,)) + PLAIN[1:]

_MODULUS: Final = (1 << 128) - 1
_BUCKET_SHIFT: Final = PARTITIONS.bit_length() - 1


def bucket_of(storage_key: bytes) -> int:
    """Return the bucket of a record: eight bits of the key's hash that partitions do not use."""
    key = storage_key[3 + storage_key[2] :]
    return (xxh3_64_intdigest(key) >> _BUCKET_SHIFT) & (BUCKETS - 1)


def is_reapable_at(record: bytes, stamp: Stamp) -> bool:
    """Whether a record was dead already at ``stamp``, on every clock, and is not newer."""
    if newest_stamp(version_of(record)) > stamp:
        return False
    if record[VERSION_END] & RecordFlag.TOMBSTONE:
        return True
    expiry = int.from_bytes(record[EXPIRY_BEGIN:HEAD_BYTES], "big")
    return expiry != NEVER and expiry <= stamp_milliseconds(stamp)


class DigestKind(IntEnum):
    """What a digest covers. The numbers stand in messages.

    ``VERSIONS``: storage key and version; all that protocol version 1 knows. ``CONTENT``: checksum
    too, so records with equal versions and different content differ. ``WRITES``: storage key, stamp
    and writer; what replicas agree on before a horizon passes (see ``cluster/burying.py``).
    """

    VERSIONS = 0
    CONTENT = 1
    WRITES = 2


#: By kind, the part of a record that is hashed.
_HASHED: Final = {
    DigestKind.VERSIONS: slice(CHECKSUM_END, VERSION_END),
    DigestKind.CONTENT: slice(VERSION_END),
    DigestKind.WRITES: slice(CHECKSUM_END, CHECKSUM_END + WRITE_BYTES),
}


class Sum:
    """Adds up records.

    Args:
        horizon: what is dead up to there is left out.
        until: only what was written up to there is added, if it is given. With ``VERSIONS``, only
            what was not touched after it either: that is how protocol version 1 agrees.
        kind: what is hashed.
    """

    def __init__(
        self,
        horizon: Stamp = 0,
        until: Stamp | None = None,
        kind: DigestKind = DigestKind.CONTENT,
    ) -> None:
        self.horizon = horizon
        self.until = until
        self.kind = kind
        self.value = 0
        self.corrupt: list[bytes] = []
        self.expirable = False
        self.count = 0

    def add(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Add (storage key, record) pairs: those up to ``until``, if it is given."""
        horizon, until, value = self.horizon, self.until, self.value
        hashed = _HASHED[self.kind]
        stamp_of = newest_stamp if self.kind is DigestKind.VERSIONS else write_stamp
        for storage_key, record in entries:
            if not is_sound(storage_key, record):
                self.corrupt.append(storage_key)
                continue
            self.count += 1
            if (tail := record[VERSION_END:HEAD_BYTES]) != PLAIN:
                self.expirable = self.expirable or tail != _RESTORED_FOR_EVER
                if horizon and is_reapable_at(record, horizon):
                    continue
            if until is None or stamp_of(version_of(record)) <= until:
                value += xxh3_128_intdigest(storage_key + record[hashed])
        self.value = value & _MODULUS

    def digest(self) -> bytes:
        """Return the sum as 16 bytes."""
        return self.value.to_bytes(DIGEST_BYTES, "big")
