"""Registers for tests: one key, and the commits that vote on it."""

from __future__ import annotations

from typing import Any, Final

from dstash.limits import PARTITIONS
from dstash.store.interface import Merged, Store, Write
from dstash.store.record import Record, build_record, partition_of
from dstash.store.register.ballot import Promise
from dstash.store.register.header import Entry, Header, pack_header
from dstash.store.register.voter import Bounds
from dstash.store.register.votes import Accepts, Prepares, Vote
from dstash.types import RecordFlag
from dstash.version import ZERO, pack, stamp_at

INDEX: Final = b"@r"
KEY: Final = b"key"
STORAGE_KEY: Final = partition_of(KEY).to_bytes(2, "big") + b"\x02@rkey"
PARTITION: Final = partition_of(KEY)
A, B = b"aaaa", b"bbbb"


def register(
    round_: int,
    step: int = 0,
    writer: bytes = A,
    *,
    value: bytes = b"\x01",
    entries: tuple[Entry, ...] = (),
    forgotten: int = 0,
    expiry: int = 0,
    fence: int = 0,
) -> bytes:
    """Return a register; a tombstone if it has no value."""
    flags = RecordFlag.REGISTER | (0 if value else RecordFlag.TOMBSTONE)
    stamp = stamp_at(round_, step)
    header = pack_header(Header(stamp, fence, forgotten, entries))
    version = pack(stamp, writer)
    return build_record(INDEX, KEY, Record(version, flags, expiry, header + value))


def commit(store: Store, write: Write) -> Merged:
    """Commit one write."""
    [merged] = store.commit([write])
    return merged


def prepare(
    store: Store,
    round_: int,
    writer: bytes = A,
    known: bytes = ZERO,
    *,
    is_needed: bool = False,
    **limits: Any,
) -> Vote:
    """Request the promise of a round; limits are ``horizon`` and those of ``Bounds``."""
    request = Prepares([STORAGE_KEY], Promise(round_, writer), [known], is_needed)
    return vote(store, request, **limits)


def accept(store: Store, record: bytes, **limits: Any) -> Vote:
    """Request that a register is taken."""
    return vote(store, Accepts([(STORAGE_KEY, record)]), **limits)


def vote(store: Store, request: Prepares | Accepts, horizon: int = 0, **limits: Any) -> Vote:
    """Vote on one key."""
    horizons = [horizon] * PARTITIONS if horizon else None
    write = Write([], 0, horizons=horizons, votes=request, bounds=Bounds(**limits))
    return commit(store, write).votes[0]


def merge(store: Store, *records: bytes, **fields: Any) -> Merged:
    """Merge registers from another replica."""
    return commit(store, Write([(STORAGE_KEY, record) for record in records], 0, **fields))
