"""Last write wins: the rule for merging records, regardless of their source.

A put by a client, a reconciliation, a replayed hint, a streamed partition: each is a merge of
records into a transaction. Merging is commutative, associative and idempotent, so messages may
arrive late, twice, or in any order (Shapiro et al., "Conflict-free Replicated Data Types", 2011).
Records are totally ordered: by version, and records with equal versions by their other bytes.

Registers are the exception: they are records on which replicas vote. ``store/register`` has their
rules; this module only calls them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dstash.store.digest import is_reapable_at
from dstash.store.interface import LIVE, UNSURE, Merged, Transaction, Write
from dstash.store.record import (
    HEAD_BYTES,
    VERSION_END,
    horizon_stamp,
    identity_of,
    is_live_head,
    is_sound,
    outranks,
    partition_in,
    version_of,
)
from dstash.store.register.ballot import has_register_keys, is_register_key
from dstash.store.register.batch import vote_all
from dstash.store.register.header import is_register
from dstash.store.register.voter import Bounds, Verdict
from dstash.store.register.votes import (
    Accepts,
    Limits,
    Prepares,
    merge_register,
    rest,
    take_earlier,
)
from dstash.version import (
    MAX_STAMP,
    WRITER_BYTES,
    Stamp,
    Version,
    is_later_write,
    newest_stamp,
    pack,
    write_of,
    write_stamp,
)


def merge(
    transaction: Transaction, writes: Iterable[Write], ceiling: Version
) -> tuple[list[Merged], Version]:
    """Merge every write into the transaction, in order.

    Args:
        transaction: the transaction.
        writes: the writes.
        ceiling: an upper bound of the versions of all stored records.

    Returns:
        the result of each write, and the new ceiling.
    """
    merged = []
    for write in writes:
        is_above = write.version is not None and write.version > ceiling
        merged.append((_replace_all if is_above else _merge_all)(transaction, write))
        for partition in write.resting:
            rest(transaction, partition, _limits(write).bounds.high_water)
        for storage_key, number in write.earlier:
            take_earlier(transaction, storage_key, number, _limits(write).bounds.high_water)
        merged[-1].registers += len(write.earlier)
        if write.votes is not None:
            _vote(transaction, write.votes, _limits(write), merged[-1])
        ceiling = max(ceiling, write.bound())
    return merged, ceiling


def raised(high_water: Stamp, writes: Sequence[Write], merged: Sequence[Merged]) -> Stamp:
    """Return the high water of a store after a commit (V6).

    It rises with every commit of records or votes, however old these are: so a store that lost one
    of them is recognised as older than it was. Marks alone do not raise it, because peers keep in
    them how new they know each other's stores to be. The last stamp of all cannot be raised.

    Args:
        high_water: before the commit.
        writes: that were committed.
        merged: their results.
    """
    stamps = [vote.stamp for outcome in merged for vote in outcome.votes if vote.stamp]
    if stamps or any(map(_has_records, writes)):
        stamps.append(high_water + 1)
    highest: Stamp = max([high_water, *stamps, *(write.newest for write in writes)])
    return min(MAX_STAMP, highest)


def _has_records(write: Write) -> bool:
    return bool(
        write.entries or write.drops or write.replacements or write.earlier or write.resting
    )


def _limits(write: Write) -> Limits:
    return Limits(write.bounds or Bounds(), write.horizons)


def _vote(
    transaction: Transaction, request: Prepares | Accepts, limits: Limits, merged: Merged
) -> None:
    """Vote on registers. They do not raise the ceiling, because no put of a client meets them."""
    merged.votes = vote_all(transaction, request, limits)
    merged.registers += sum(1 for answer in merged.votes if answer.stamp)


def _merge_register(transaction: Transaction, write: Write, merged: Merged, position: int) -> None:
    """Merge one entry that is a register."""
    storage_key, record = write.entries[position]
    promised = write.promises.get(partition_in(storage_key), 0)
    is_news = not _is_up_to_date_register(transaction, storage_key, record)
    if write_stamp(version_of(record)) <= promised:
        if is_news:
            merged.promised.append(position)
        return
    verdict, held = merge_register(transaction, storage_key, record, _limits(write))
    if verdict is Verdict.VOTED:
        merged.registers += record != held.record
    elif verdict is Verdict.CORRUPT:
        merged.corrupt.append(position)
    elif verdict is Verdict.TOO_OLD:
        merged.past.append(position)
    elif is_news:
        merged.preempted.append(position)
    else:
        merged.superseded.append((position, held.version))


def _is_up_to_date_register(transaction: Transaction, storage_key: bytes, record: bytes) -> bool:
    stored = transaction.get(storage_key)
    return (
        stored is not None
        and is_sound(storage_key, stored)
        and is_register(stored)
        and not outranks(record, stored)
    )


def _replace_all(transaction: Transaction, write: Write) -> Merged:
    """Merge records that beat every stored record, corrupt or not, so none has to be read."""
    merged = Merged(existed=bytearray(len(write.entries)))
    if write.report_existed:
        for position, (storage_key, _) in enumerate(write.entries):
            stored = transaction.get(storage_key)
            if stored is not None:
                is_known = is_sound(storage_key, stored)
                merged.existed[position] = _live(write, storage_key, stored) if is_known else UNSURE
    transaction.put_all(write.entries)
    return merged


def _live(write: Write, storage_key: bytes, stored: bytes) -> int:
    """Return ``LIVE`` if a stored record was live, and not dropped; else 0."""
    is_live = is_live_head(stored[VERSION_END:HEAD_BYTES], write.now) and not (
        write.is_dropped is not None and write.is_dropped(storage_key, stored)
    )
    return LIVE if is_live else 0


def _is_overtaken(write: Write, storage_key: bytes, stored: bytes) -> bool:
    """Whether a stored live record is a later write of the same client.

    It hides whether the key was live when that later write arrived. The client does not stamp a
    write past its own later one, so no other attempt finds that out.
    """
    return (
        write.version is not None
        and is_later_write(version_of(stored), write.version)
        and bool(_live(write, storage_key, stored))
    )


def _merge_all(transaction: Transaction, write: Write) -> Merged:
    get, put = transaction.get, transaction.put
    is_guarded, upper_bound = _is_guarded(write), write.upper_bound
    merged = Merged(existed=bytearray(len(write.entries)))
    # A client cannot write to an index with registers.
    has_registers = write.version is None and has_register_keys(write.entries)
    # Most keys are new, and a look-up costs as much as an insert.
    all_new = (
        not is_guarded
        and not has_registers
        and transaction.insert_all(write.entries) == len(write.entries)
    )
    for position, (storage_key, record) in enumerate(() if all_new else write.entries):
        if has_registers and is_register_key(storage_key) and is_register(record):
            _merge_register(transaction, write, merged, position)
            continue
        stored = get(storage_key)
        if is_guarded:
            refusals = _refusals(write, merged, storage_key, stored, record)
            if refusals is not None:
                if stored is None or not _is_up_to_date(write, storage_key, stored, record):
                    refusals.append(position)
                continue
        if stored == record:
            continue  # just inserted, or a redundant retry, hint or repair
        if stored is not None:
            if not is_sound(storage_key, stored):  # its version is not reliable
                # The stamp of the write decides: a touch does not make a write newer.
                if write_stamp(version_of(record)) > upper_bound:
                    merged.existed[position] = UNSURE
                    put(storage_key, record)
                else:
                    merged.corrupt.append(position)
                continue
            version = version_of(stored)
            if has_registers and is_register(stored):
                merged.superseded.append((position, version))
                continue
            if outranks(stored, record) and not _is_replaced(write, version, record):
                if _is_contested(write, version):
                    merged.contested.append((position, version))
                    continue
                merged.superseded.append((position, _to_exceed(write, version)))
                if write.report_existed and _is_overtaken(write, storage_key, stored):
                    merged.existed[position] = UNSURE
                continue
            merged.existed[position] = _live(write, storage_key, stored)
        put(storage_key, record)
    for storage_key, identity in write.drops:
        stored = get(storage_key)
        if stored is not None and identity_of(stored) == identity:
            transaction.delete(storage_key)
    for storage_key, replacement in write.replacements:
        _write_replacement(transaction, storage_key, replacement, merged)
    return merged


def _write_replacement(
    transaction: Transaction, storage_key: bytes, record: bytes | None, merged: Merged
) -> None:
    stored = transaction.get(storage_key)
    if stored is None or is_sound(storage_key, stored):
        return  # it was rewritten in the meantime
    if record is None:
        transaction.delete(storage_key)
    else:
        transaction.put(storage_key, record)
        merged.replaced.append((storage_key, record))


def _is_guarded(write: Write) -> bool:
    """Whether records of a write may be too old: not above a horizon or a promise."""
    if write.horizons is None:
        return False
    partitions = {partition_in(storage_key) for storage_key, _ in write.entries}
    bounds = [
        max(write.horizons[partition], write.promises.get(partition, 0)) for partition in partitions
    ]
    return write.oldest <= max(bounds, default=0)


def _is_replaced(write: Write, stored: Version, record: bytes) -> bool:
    """Whether a stored version is that of a future record, which a record of a write replaces."""
    if not _is_future(write, stored):
        return False
    acked = 0 if write.acked is None else write.acked.get(stored, MAX_STAMP)
    return newest_stamp(version_of(record)) > acked


def _is_contested(write: Write, stored: Version) -> bool:
    """Whether a version is that of a future record, and what was acked before is not known yet."""
    is_unknown = write.acked is not None and stored not in write.acked
    return is_unknown and _is_future(write, stored)


def _to_exceed(write: Write, stored: Version) -> Version:
    """Return the version that a later one must exceed to be stored in place of a stored one."""
    if write.acked and stored in write.acked and _is_future(write, stored):
        return min(stored, pack(write.acked[stored], b"\xff" * WRITER_BYTES))
    return stored


def _is_future(write: Write, stored: Version) -> bool:
    return newest_stamp(stored) > write.latest or stored in write.replaces


def _is_up_to_date(write: Write, storage_key: bytes, stored: bytes, record: bytes) -> bool:
    if outranks(record, stored) or not is_sound(storage_key, stored):
        return False
    return stored == record or not _is_replaced(write, version_of(stored), record)


def _refusals(
    write: Write, merged: Merged, storage_key: bytes, stored: bytes | None, record: bytes
) -> list[int] | None:
    """Return the list of ``merged`` for a record that must be rejected; None if it is accepted."""
    partition = partition_in(storage_key)
    horizon = write.horizons[partition] if write.horizons is not None else 0
    promise = write.promises.get(partition, 0)
    if horizon_stamp(record) <= horizon and not _is_live_here(storage_key, stored, record, horizon):
        return merged.past
    # The agreement covers all writes, including restored records.
    is_promised = write_stamp(version_of(record)) <= promise
    if is_promised and not _is_live_here(storage_key, stored, record, promise):
        return merged.promised
    return None


def _is_live_here(storage_key: bytes, stored: bytes | None, record: bytes, stamp: Stamp) -> bool:
    """Whether the same write is stored here, and both records are live at a stamp.

    Then the record only changes the expiry, which is not part of the agreement, and neither is the
    content of a write. If either is reapable at the stamp, other replicas may have dropped
    it.
    """
    return (
        stored is not None
        and write_of(version_of(stored)) == write_of(version_of(record))
        and is_sound(storage_key, stored)
        and not is_reapable_at(stored, stamp)
        and not is_reapable_at(record, stamp)
    )
