"""Digests: 16 bytes that show whether two replicas of a partition have equal records.

A digest is the sum of a hash over all records, modulo 2**128. Sums do not depend on order, so
replicas can walk independently. Dynamo and Cassandra use Merkle trees for this; with 4096
partitions and 256 buckets in each, two levels are enough. ``DigestKind`` is the hashed part of a
record.

Tombstones and expired records up to the partition's horizon are left out, because it does not
matter whether they are still on disk. Corrupt records are left out too: they count as missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from dstash import loops
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
from dstash.store.register.header import collectable_from
from dstash.types import NEVER, RecordFlag
from dstash.version import (
    MAX_STAMP,
    WRITE_BYTES,
    Stamp,
    newest_stamp,
    stamp_at,
    stamp_range_of,
    write_stamp,
)

DIGEST_BYTES: Final = 16
BUCKETS: Final = 256
EMPTY: Final = bytes(DIGEST_BYTES)

#: Above every stamp.
UNREAPABLE: Final[Stamp] = MAX_STAMP + 1

_REGISTER: Final = RecordFlag.REGISTER.value
_SUM_MASK: Final = (1 << 128) - 1
_BUCKET_SHIFT: Final = PARTITIONS.bit_length() - 1


def bucket_of(storage_key: bytes) -> int:
    """Return the bucket of a record: the eight bits of the key's hash above the partition."""
    key = storage_key[3 + storage_key[2] :]
    return (xxh3_64_intdigest(key) >> _BUCKET_SHIFT) & (BUCKETS - 1)


def is_reapable_at(record: bytes, stamp: Stamp) -> bool:
    """Whether a record may be dropped when ``stamp`` is the horizon; see ``reapable_from``."""
    # Most records are newer.
    return newest_stamp(version_of(record)) <= stamp and reapable_from(record) <= stamp


def reapable_from(record: bytes) -> Stamp:
    """Return the lowest horizon at which a record may be dropped; ``UNREAPABLE`` if none is known.

    It is not below the stamps of the record, and a tombstone, or expired by then. Replicas agree on
    the expiry of a register by a tombstone, so only that counts.
    """
    newest = newest_stamp(version_of(record))
    if record[VERSION_END] & _REGISTER:
        return collectable_from(record)
    if record[VERSION_END] & RecordFlag.TOMBSTONE:
        return newest
    expiry = int.from_bytes(record[EXPIRY_BEGIN:HEAD_BYTES], "big")
    return UNREAPABLE if expiry == NEVER else max(newest, stamp_at(expiry))


class DigestKind(IntEnum):
    """The part of a record that a digest covers. The numbers are used in messages.

    ``VERSIONS``: storage key and version; the only kind in protocol version 1. ``CONTENT``: the
    checksum too, so that records with equal versions and different content differ. ``WRITES``:
    storage key, stamp and writer; replicas agree on it before a horizon advances (see
    ``cluster/replication/tombstone_gc.py``).
    """

    VERSIONS = 0
    CONTENT = 1
    WRITES = 2


def kind_of(number: int, best: DigestKind = DigestKind.CONTENT) -> DigestKind:
    """Return the kind of digest that a message requests: ``best``, or else ``VERSIONS``."""
    return best if number == best else DigestKind.VERSIONS


#: By kind, begin and end of the hashed part of a record.
_HASHED: Final = {
    DigestKind.VERSIONS: (CHECKSUM_END, VERSION_END),
    DigestKind.CONTENT: (0, VERSION_END),
    DigestKind.WRITES: (CHECKSUM_END, CHECKSUM_END + WRITE_BYTES),
}


class Contents(NamedTuple):
    """What a walk found besides the hashes.

    ``newest``: the newest stamp; ``register``: that of a record, if there are registers, else 0.
    ``reapable``: the lowest horizon at which a record may be dropped. The hashes were summed at
    some horizon; the sum is the same at all horizons from ``valid_from`` to before ``valid_until``.
    """

    records: int = 0
    newest: Stamp = 0
    register: Stamp = 0
    reapable: Stamp = UNREAPABLE
    valid_from: Stamp = 0
    valid_until: Stamp = UNREAPABLE

    def joined(self, other: Contents) -> Contents:
        """Return the contents of two ranges together."""
        return Contents(
            self.records + other.records,
            max(self.newest, other.newest),
            max(self.register, other.register),
            min(self.reapable, other.reapable),
            max(self.valid_from, other.valid_from),
            min(self.valid_until, other.valid_until),
        )


class Sum:
    """The sum of record hashes.

    Args:
        horizon: records that are reapable at this stamp are left out.
        until: if given, only records written up to this stamp are added. With ``VERSIONS`` they
            must not have been touched later either, as protocol version 1 defines it.
        kind: the hashed part of a record.
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
        self.contents = Contents()

    def add(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Add (storage key, record) pairs; only those up to ``until`` if it is given."""
        entries = list(entries)
        if not entries:
            return
        begin, end = _HASHED[self.kind]
        horizon, until, value = self.horizon, self.until, self.value
        newest = stamp_range_of([record[CHECKSUM_END:VERSION_END] for _, record in entries]).newest
        count = len(entries)
        if until is None or newest <= until:
            until = None
            digest, entries = loops.sum_hashes(entries, begin, end)
            value += int.from_bytes(digest, "big")
        stamp_of = newest_stamp if self.kind is DigestKind.VERSIONS else write_stamp
        register, reapable, valid_from, valid_until = 0, UNREAPABLE, 0, UNREAPABLE
        for storage_key, record in entries:
            if not is_sound(storage_key, record):
                self.corrupt.append(storage_key)
                count -= 1
                continue
            if record[VERSION_END:HEAD_BYTES] != PLAIN:
                if record[VERSION_END] & _REGISTER:
                    register = newest
                stamp = reapable_from(record)
                reapable = min(reapable, stamp)
                if horizon and stamp <= horizon:
                    valid_from = max(valid_from, stamp)
                    continue
                valid_until = min(valid_until, stamp)
            if until is None or stamp_of(version_of(record)) <= until:
                value += xxh3_128_intdigest(storage_key + record[begin:end])
        self.value = value & _SUM_MASK
        found = Contents(count, newest, register, reapable, valid_from, valid_until)
        self.contents = self.contents.joined(found)

    @property
    def is_whole(self) -> bool:
        """Whether ``until`` has left out no record."""
        return self.until is None or self.contents.newest <= self.until

    def digest(self) -> bytes:
        """Return the sum as 16 bytes."""
        return self.value.to_bytes(DIGEST_BYTES, "big")
