"""The layout of what is on disk: storage keys and records.

::

    storage key   | partition 2 | index length 1 | index | key |
    record        | checksum 8 | version 20 | flags 1 | expiry 8 | payload |

Numbers are big-endian, so LMDB's byte order is their order: a partition is one range of the
tree, and within it an index is one range. The checksum is XXH3-64 over everything behind it,
seeded with the hash of the key and of the index, so that a record found under the wrong key fails
too. (LMDB has no checksums of its own; most random bit flips in its file go unnoticed.)
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
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

#: Flags and expiry of the common case: a live value that never expires.
PLAIN: Final = bytes(HEAD_BYTES - VERSION_END)

#: What replaces a missing record's version in a digest.
ABSENT: Final = bytes(VERSION_BYTES)


class Record(NamedTuple):
    """A record, taken apart."""

    version: Version
    flags: int
    expiry: int
    payload: bytes

    @property
    def is_tombstone(self) -> bool:
        """Whether this record says that the key was deleted."""
        return bool(self.flags & RecordFlag.TOMBSTONE)

    def is_live(self, now: int) -> bool:
        """Whether a reader at ``now`` (milliseconds since 1970) may see the payload."""
        return not self.is_tombstone and (self.expiry == NEVER or self.expiry > now)


def partition_of(key: bytes) -> int:
    """Return the partition of an encoded key. The index plays no part."""
    return xxh3_64_intdigest(key) & MASK


class Keyspace:
    """One index as one peer holds it: where keys go on disk, and which ones do not belong here.

    ``prefixes[partition]`` is the beginning of the storage keys of that partition, or None where
    this peer holds no replica of it: adding a key to None fails at once, so ownership is checked
    without a test per key.
    """

    def __init__(self, index: bytes, owned: Collection[int]) -> None:
        self.index = index
        self.salt = xxh3_64_intdigest(index)
        name = bytes((len(index),)) + index
        self.prefixes: list[bytes | None] = [None] * PARTITIONS
        for partition in owned:
            self.prefixes[partition] = partition.to_bytes(2, "big") + name

    def prefix(self, partition: int) -> bytes:
        """Return the beginning of this index's storage keys in a partition."""
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
    """Return what stands between checksum and payload."""
    return version + bytes((flags,)) + expiry.to_bytes(8, "big")


def seal(
    space: Keyspace, keys: Sequence[bytes], heads: bytes, payloads: Sequence[bytes]
) -> list[tuple[bytes, bytes]]:
    """Return (storage key, record) for keys that share one head.

    Raises:
        Misrouted: a key whose partition is not held here.
    """
    prefixes, salt = space.prefixes, space.salt
    sealed = []
    try:
        for key, payload in zip(keys, payloads, strict=True):
            digest = xxh3_64_intdigest(key)
            body = heads + payload
            sealed.append(
                (
                    prefixes[digest & MASK] + key,  # type: ignore[operator]  # None: see Keyspace
                    xxh3_64_digest(body, digest ^ salt) + body,
                )
            )
    except TypeError:
        raise space.misrouted() from None
    return sealed


def locate(space: Keyspace, keys: Sequence[bytes]) -> list[bytes]:
    """Return the storage keys of ``keys``; ``Misrouted`` when one is not held here."""
    prefixes = space.prefixes
    try:
        return [prefixes[xxh3_64_intdigest(key) & MASK] + key for key in keys]  # type: ignore[operator]  # see Keyspace
    except TypeError:
        raise space.misrouted() from None


def is_intact(record: bytes, key: bytes, salt: int) -> bool:
    """Whether a record's checksum fits its content, its key and its index."""
    return len(record) >= HEAD_BYTES and (
        xxh3_64_digest(record[CHECKSUM_END:], xxh3_64_intdigest(key) ^ salt)
        == record[:CHECKSUM_END]
    )


def is_intact_under(record: bytes, seed: int) -> bool:
    """Like ``is_intact``, for who has hashed the key already: the seed is its hash XOR the salt."""
    return len(record) >= HEAD_BYTES and (
        xxh3_64_digest(record[CHECKSUM_END:], seed) == record[:CHECKSUM_END]
    )


def is_sound(storage_key: bytes, record: bytes) -> bool:
    """Like ``is_intact``, from the storage key alone; written out, for healing asks it of all."""
    end = 3 + storage_key[2]
    seed = xxh3_64_intdigest(storage_key[end:]) ^ xxh3_64_intdigest(storage_key[3:end])
    return len(record) >= HEAD_BYTES and (
        xxh3_64_digest(record[CHECKSUM_END:], seed) == record[:CHECKSUM_END]
    )


def open_record(record: bytes) -> Record:
    """Take a record apart; ``CorruptRecord`` when it is too short to be one."""
    if len(record) < HEAD_BYTES:
        raise CorruptRecord(f"record of {len(record)} bytes; the shortest has {HEAD_BYTES}")
    return Record(
        record[CHECKSUM_END:VERSION_END],
        record[VERSION_END],
        int.from_bytes(record[EXPIRY_BEGIN:HEAD_BYTES], "big"),
        record[HEAD_BYTES:],
    )


def build_record(index: bytes, key: bytes, record: Record) -> bytes:
    """Put a record together, checksum included."""
    body = head(record.version, record.flags, record.expiry) + record.payload
    seed = xxh3_64_intdigest(key) ^ xxh3_64_intdigest(index)
    return xxh3_64_digest(body, seed) + body


def is_tombstone(record: bytes) -> bool:
    """Return whether a sound record says that its key was deleted."""
    return bool(record[VERSION_END] & RecordFlag.TOMBSTONE)


def is_live_head(tail: bytes, now: int) -> bool:
    """Whether flags and expiry (9 bytes, as stored) are those of a record visible at ``now``."""
    if tail == PLAIN:
        return True
    if len(tail) < len(PLAIN):
        return False  # of a record that was cut off
    expiry = int.from_bytes(tail[1:], "big")
    return not tail[0] & RecordFlag.TOMBSTONE and (expiry == NEVER or expiry > now)


def partition_in(storage_key: bytes) -> int:
    """Return the partition that a storage key, or a scan position from elsewhere, begins with."""
    return int.from_bytes(storage_key[:2])  # of a malformed position, which may be shorter, too


def version_of(record: bytes) -> Version:
    """Return the version of a stored record."""
    return record[CHECKSUM_END:VERSION_END]


def horizon_stamp(record: bytes) -> Stamp:
    """Return the stamp by which horizons judge a record: that of its write.

    A touch makes no write newer. A record that was restored from another cluster counts as written
    when it was restored, or touched later.
    """
    version = record[CHECKSUM_END:VERSION_END]
    restored = record[VERSION_END] & RecordFlag.RESTORED.value
    return newest_stamp(version) if restored else write_stamp(version)


def identity_of(record: bytes) -> bytes:
    """Return checksum and version: what tells a record from every other one of its key."""
    return record[:VERSION_END]


def outranks(record: bytes, other: bytes) -> bool:
    """Whether a record wins over another one of its key, on every replica.

    The higher version wins. Two records with one version (of two writers with one id, or of two
    touches in one millisecond) are compared by all their other bytes, as stored.
    """
    mine, theirs = record[CHECKSUM_END:VERSION_END], other[CHECKSUM_END:VERSION_END]
    return mine > theirs or (mine == theirs and record[VERSION_END:] > other[VERSION_END:])


def highest(records: Iterable[bytes | None]) -> bytes | None:
    """Return the record that wins over all the others, None if there is none."""
    winner: bytes | None = None
    for record in records:
        if record is not None and (winner is None or outranks(record, winner)):
            winner = record
    return winner


def split_storage_key(storage_key: bytes) -> tuple[int, bytes, bytes]:
    """Return (partition, index, key)."""
    end = 3 + storage_key[2]
    return partition_in(storage_key), storage_key[3:end], storage_key[end:]
