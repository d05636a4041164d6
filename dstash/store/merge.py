"""Last write wins: the one rule by which records meet, whoever brings them.

A put by a client, a read repair, a hint replayed, a partition transferred: all are merges of
records into a transaction. Merging is commutative, associative and idempotent, so messages may
arrive late, twice, or in any order (Shapiro et al., "Conflict-free Replicated Data Types", 2011).
Records are totally ordered: by version, and records with equal versions by their other bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dstash.store.interface import Merged, Transaction, Write
from dstash.store.record import (
    CHECKSUM_END,
    HEAD_BYTES,
    VERSION_END,
    identity_of,
    is_live_head,
    is_sound,
    outranks,
)
from dstash.version import Stamp, Version, newest_stamp, unpack


def merge(
    transaction: Transaction, writes: Iterable[Write], ceiling: Version
) -> tuple[list[Merged], Version]:
    """Merge every write into the transaction, in order, and tell what became of each.

    Args:
        ceiling: a version that no record which is stored is above.

    Returns:
        What became of the writes, and the ceiling afterwards.
    """
    merged = []
    for write in writes:
        is_above = write.version is not None and write.version > ceiling
        merged.append((_replace_all if is_above else _merge_all)(transaction, write))
        ceiling = max(ceiling, write.bound())
    return merged, ceiling


def _replace_all(transaction: Transaction, write: Write) -> Merged:
    """Merge what beats whatever there is, damaged or not: it need not be looked at."""
    merged = Merged(existed=bytearray(len(write.entries)))
    if write.tells_existed:
        for place, (storage_key, _) in enumerate(write.entries):
            stored = transaction.get(storage_key)
            if stored is not None and is_live_head(stored[VERSION_END:HEAD_BYTES], write.now):
                merged.existed[place] = 1
    transaction.put_all(write.entries)
    return merged


def _merge_all(transaction: Transaction, write: Write) -> Merged:
    get, put = transaction.get, transaction.put
    now, horizons, doubt = write.now, _horizons_of(write), write.doubt
    merged = Merged(existed=bytearray(len(write.entries)))
    # Most keys are new, and looking for what is there costs as much as storing.
    all_new = horizons is None and transaction.insert_all(write.entries) == len(write.entries)
    for place, (storage_key, record) in enumerate(() if all_new else write.entries):
        stored = get(storage_key)
        if horizons is not None and _is_past(storage_key, record, horizons):
            if stored is None or not _holds_as_much(storage_key, stored, record):
                merged.past.append(place)
            continue
        if stored == record:
            continue  # new, or a retry, a hint, a repair that was not needed
        if stored is not None:
            if not is_sound(storage_key, stored):  # what it says of its version means nothing
                # Stamps of writes decide, and not of touches: those do not make a write newer.
                if unpack(record[CHECKSUM_END:VERSION_END])[0] > doubt:
                    put(storage_key, record)
                else:
                    merged.damaged.append(place)
                continue
            if outranks(stored, record):
                merged.superseded.append((place, stored[CHECKSUM_END:VERSION_END]))
                continue
            if is_live_head(stored[VERSION_END:HEAD_BYTES], now):
                merged.existed[place] = 1
        put(storage_key, record)
    for storage_key, identity in write.drops:
        stored = get(storage_key)
        if stored is not None and identity_of(stored) == identity:
            transaction.delete(storage_key)
    for storage_key, cure in write.cures:
        _cure(transaction, storage_key, cure)
    return merged


def _cure(transaction: Transaction, storage_key: bytes, record: bytes | None) -> None:
    stored = transaction.get(storage_key)
    if stored is None or is_sound(storage_key, stored):
        return  # it was written anew meanwhile
    if record is None:
        transaction.delete(storage_key)
    else:
        transaction.put(storage_key, record)


def _horizons_of(write: Write) -> Sequence[Stamp] | None:
    """Return the horizons that the records of a write are to be held to, None if all are above."""
    if write.horizons is None:
        return None
    prefixes = {storage_key[:2] for storage_key, _ in write.entries}
    highest = max([write.horizons[int.from_bytes(one, "big")] for one in prefixes], default=0)
    return write.horizons if write.oldest <= highest else None


def _holds_as_much(storage_key: bytes, stored: bytes, record: bytes) -> bool:
    return not outranks(record, stored) and is_sound(storage_key, stored)


def _is_past(storage_key: bytes, record: bytes, horizons: Sequence[Stamp]) -> bool:
    """Whether a record is older than what all replicas agreed on, and so must not come back."""
    horizon = horizons[int.from_bytes(storage_key[:2], "big")]
    return newest_stamp(record[CHECKSUM_END:VERSION_END]) <= horizon
