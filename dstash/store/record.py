"""The layout of storage keys and records on disk.

::

    storage key   | partition 2 | index length 1 | index | key |
    record        | checksum 8 | version 20 | flags 1 | expiry 8 | payload |

Numbers are big-endian, so that LMDB's byte order is their order: a partition is one range of the
tree, and within it an index is one range. The checksum is XXH3-64 over everything after it, seeded
with the hashes of key and index, so that a record under the wrong key fails too. (LMDB has no
checksums of its own; most random bit flips in its file go unnoticed.)
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from dstash.errors import CorruptRecord, Misrouted
from dstash.limits import PARTITIONS
from dstash.types import NEVER, RecordFlag
from dstash.version import VERSION_BYTES, Stamp, Version, newest_stamp, write_stamp

MASK: Final = PARTITIONS - 1
CHECKSUM_END: Final = 8
VERSION_END: Final = CHECKSUM_END + VERSION_BYTES
EXPIRY_BEGIN: Final = VERSION_END + 1
HEAD_BYTES: Final = EXPIRY_BEGIN + 8

#: Flags and expiry of a live value that never expires, the common case.
PLAIN: Final = bytes(HEAD_BYTES - VERSION_END)

#: Takes the place of the version of a missing or corrupt record.
ABSENT: Final = bytes(VERSION_BYTES)

#: Takes the place of the head of a missing record where only heads are compared.
ABSENT_HEAD: Final = bytes(CHECKSUM_END) + ABSENT + bytes((RecordFlag.TOMBSTONE,)) + bytes(8)


class Record(NamedTuple):
    """The fields of a record."""

    version: Version
    flags: int
    expiry: int
    payload: bytes

    @property
    def is_tombstone(self) -> bool:
        """Whether this record marks a deleted key."""
        return bool(self.flags & RecordFlag.TOMBSTONE)

    def is_live(self, now: int) -> bool:
        """Whether a reader at ``now`` (milliseconds since 1970) may see the payload."""
        return not self.is_tombstone and (self.expiry == NEVER or self.expiry > now)


def partition_of(key: bytes) -> int:
    """Return the partition of an encoded key, which does not depend on the index."""
    return xxh3_64_intdigest(key) & MASK


class Keyspace:
    """One index on one peer: the prefixes of its storage keys, for the partitions held here.

    ``prefixes[partition]`` is the prefix of the storage keys in that partition, or None if this
    peer holds no replica of it. Adding a key to None raises at once, so ownership is checked
    without a test for each key.
    """

    def __init__(self, index: bytes, owned: Collection[int]) -> None:
        self.index = index
        self.salt = xxh3_64_intdigest(index)
        name = bytes((len(index),)) + index
        self.prefixes: list[bytes | None] = [None] * PARTITIONS
        for partition in owned:
            self.prefixes[partition] = partition.to_bytes(2, "big") + name

    def prefix(self, partition: int) -> bytes:
        """Return the prefix of this index's storage keys in a partition."""
        prefix = self.prefixes[partition]
        if prefix is None:
            raise self.misrouted()
        return prefix

    def misrouted(self) -> Misrouted:
        """Return the error for a key of a partition that is not held here."""
        return Misrouted("this peer holds no replica of a key in the request")


@functools.lru_cache(maxsize=32)
def keyspace(index: bytes, owned: frozenset[int]) -> Keyspace:
    """Return the (cached) keyspace of an index."""
    return Keyspace(index, owned)


def head(version: Version, flags: int = 0, expiry: int = NEVER) -> bytes:
    """Return the part of a record between checksum and payload."""
    return version + bytes((flags,)) + expiry.to_bytes(8, "big")


def is_intact(record: bytes, key: bytes, salt: int) -> bool:
    """Whether a record's checksum matches its content, key and index."""
    return len(record) >= HEAD_BYTES and (
        xxh3_64_digest(record[CHECKSUM_END:], xxh3_64_intdigest(key) ^ salt)
        == record[:CHECKSUM_END]
    )


def is_intact_under(record: bytes, seed: int) -> bool:
    """Like ``is_intact``, for a key that is already hashed: ``seed`` is its hash XOR the salt."""
    return len(record) >= HEAD_BYTES and (
        xxh3_64_digest(record[CHECKSUM_END:], seed) == record[:CHECKSUM_END]
    )


def is_sound(storage_key: bytes, record: bytes) -> bool:
    """Like ``is_intact``, from the storage key alone; inlined, because walks check every record."""
    end = 3 + storage_key[2]
    seed = xxh3_64_intdigest(storage_key[end:]) ^ xxh3_64_intdigest(storage_key[3:end])
    return len(record) >= HEAD_BYTES and (
        xxh3_64_digest(record[CHECKSUM_END:], seed) == record[:CHECKSUM_END]
    )


def open_record(record: bytes) -> Record:
    """Return the fields of a record; ``CorruptRecord`` if it is too short."""
    if len(record) < HEAD_BYTES:
        raise CorruptRecord(f"record of {len(record)} bytes; the shortest has {HEAD_BYTES}")
    return Record(
        record[CHECKSUM_END:VERSION_END],
        record[VERSION_END],
        int.from_bytes(record[EXPIRY_BEGIN:HEAD_BYTES], "big"),
        record[HEAD_BYTES:],
    )


def build_record(index: bytes, key: bytes, record: Record) -> bytes:
    """Return a record with its checksum."""
    body = head(record.version, record.flags, record.expiry) + record.payload
    seed = xxh3_64_intdigest(key) ^ xxh3_64_intdigest(index)
    return xxh3_64_digest(body, seed) + body


def seal_at(storage_key: bytes, body: bytes) -> bytes:
    """Return a record, given all of it but the checksum."""
    end = 3 + storage_key[2]
    seed = xxh3_64_intdigest(storage_key[end:]) ^ xxh3_64_intdigest(storage_key[3:end])
    return xxh3_64_digest(body, seed) + body


def is_tombstone(record: bytes) -> bool:
    """Return whether a sound record is a tombstone."""
    return bool(record[VERSION_END] & RecordFlag.TOMBSTONE)


def is_live_head(tail: bytes, now: int) -> bool:
    """Whether flags and expiry (9 bytes, as stored) belong to a record visible at ``now``."""
    if tail == PLAIN:
        return True
    if len(tail) < len(PLAIN):
        return False  # of a truncated record
    expiry = int.from_bytes(tail[1:], "big")
    return not tail[0] & RecordFlag.TOMBSTONE and (expiry == NEVER or expiry > now)


def partition_in(storage_key: bytes) -> int:
    """Return the partition of a storage key, or of a scan position, which may be shorter."""
    return int.from_bytes(storage_key[:2])


def partition_range(partition: int) -> tuple[bytes, bytes]:
    """Return the lowest storage key of a partition, and the key after its highest."""
    end = partition + 1
    return partition.to_bytes(2, "big"), end.to_bytes(2, "big")


def version_of(record: bytes) -> Version:
    """Return the version of a stored record."""
    return record[CHECKSUM_END:VERSION_END]


def horizon_stamp(record: bytes) -> Stamp:
    """Return the stamp that is compared with horizons: that of the write.

    A touch does not make a write newer. A record that was restored from another cluster counts as
    written when it was restored or last touched.
    """
    version = record[CHECKSUM_END:VERSION_END]
    restored = record[VERSION_END] & RecordFlag.RESTORED.value
    return newest_stamp(version) if restored else write_stamp(version)


def identity_of(record: bytes) -> bytes:
    """Return checksum and version, which identify a record among all records of its key."""
    return record[:VERSION_END]


def outranks(record: bytes, other: bytes) -> bool:
    """Whether a record wins over another record of its key, on every replica.

    The higher version wins. Two records with the same version (of two writers with one id, or of
    two touches in one millisecond) are compared by all their other bytes, as stored.
    """
    version, rival = record[CHECKSUM_END:VERSION_END], other[CHECKSUM_END:VERSION_END]
    return version > rival or (version == rival and record[VERSION_END:] > other[VERSION_END:])


def highest(records: Iterable[bytes | None]) -> bytes | None:
    """Return the record that wins over all others; None if there is none."""
    winner: bytes | None = None
    for record in records:
        if record is not None and (winner is None or outranks(record, winner)):
            winner = record
    return winner


def is_misplaced(storage_key: bytes) -> bool:
    """Whether no record can have this storage key: its key does not belong to its partition."""
    if len(storage_key) < 3:
        return True
    _, index, key = split_storage_key(storage_key)
    return not index or partition_in(storage_key) != partition_of(key)


def split_storage_key(storage_key: bytes) -> tuple[int, bytes, bytes]:
    """Return (partition, index, key)."""
    end = 3 + storage_key[2]
    return partition_in(storage_key), storage_key[3:end], storage_key[end:]
