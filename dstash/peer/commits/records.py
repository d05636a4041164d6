"""Whole records, each with its own version: applied by a client, pushed by a peer, or of a task.

Each record is checked by itself: its sender may have a failing disk or a wrong clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from dstash import loops
from dstash.errors import (
    Busy,
    ClockSkew,
    CorruptRecord,
    DiskFull,
    DStashError,
    IndexDropped,
    ProtocolError,
)
from dstash.peer.admission.writes import Internal
from dstash.peer.commits.rules import (
    TOMBSTONE,
    Prepared,
    Rejected,
    Rules,
    bad_keys,
    check_skew,
    check_storage_key,
)
from dstash.peer.commits.votes import check_register_record
from dstash.store.interface import Write
from dstash.store.record import (
    HEAD_BYTES,
    VERSION_END,
    Keyspace,
    is_sound,
    partition_in,
    version_of,
)
from dstash.store.register.ballot import is_register_key
from dstash.store.sealing import locate
from dstash.types import RecordFlag
from dstash.version import MAX_STAMP, StampRange, newest_stamp, stamp_milliseconds, stamp_range_of
from dstash.wire import codec
from dstash.wire.messages import Apply
from dstash.wire.replication import Push

#: A plain number: arithmetic with flags takes longer.
_REGISTER: Final = RecordFlag.REGISTER.value

#: The error of a record that a client applies after its index was dropped.
_DROPPED: Final = "the record was dropped with its index"


def prepare_apply(message: Apply, space: Keyspace, rules: Rules) -> Prepared:
    """Prepare the records of a client, which restores a backup or repairs a replica.

    Raises:
        Misrouted: this peer holds no replica of a key.
        ProtocolError: the request is malformed.
    """
    keys, records = codec.unpack_blobs(message.keys), codec.unpack_blobs(message.records)
    codec.expect_even(keys, records)
    rejected = bad_keys(keys)
    bad = {entry[0] for entry in rejected}
    good = [place for place in range(len(keys)) if place not in bad]
    located = locate(space, [keys[place] for place in good])
    entries = [(key, records[place]) for key, place in zip(located, good, strict=True)]
    if rules.floors:
        dropped = {place for place, entry in enumerate(entries) if rules.floors.covers(*entry)}
        rejected += [[good[place], IndexDropped.code, _DROPPED] for place in sorted(dropped)]
        good = [place for number, place in enumerate(good) if number not in dropped]
        entries = [entry for number, entry in enumerate(entries) if number not in dropped]
    return _prepare_records(entries, good, rejected, rules)


def prepare_push(message: Push, space: None, rules: Rules) -> Prepared:
    """Prepare the records of another peer.

    Raises:
        Misrouted: this peer holds no replica of a partition.
        ProtocolError: the request is malformed.
    """
    entries = codec.unpack_entries(message.keys, message.records)
    for storage_key, _ in entries:
        check_storage_key(storage_key, rules.owned)
    entries = _without_dropped(entries, rules)
    return _prepare_records(entries, range(len(entries)), [], rules)


def prepare_internal(message: Internal, space: None, rules: Rules) -> Prepared:
    """Prepare the valid entries; the task gets the error of the rejected entries after the commit.

    A comparison may fetch records whose partition has moved away meanwhile; they are dropped.
    """
    merge = message.merge
    if merge.is_acked:
        rules = rules._replace(max_skew=stamp_milliseconds(MAX_STAMP))
    entries = [entry for entry in merge.entries if partition_in(entry[0]) in rules.owned]
    entries = _without_dropped(entries, rules)
    prepared = _prepare_records(entries, range(len(entries)), [], rules)
    # The votes of other replicas do not repair a register, unless it rests: see docs/atomic.md.
    replacements = [
        item
        for item in merge.replacements
        if not is_register_key(item[0]) or partition_in(item[0]) in rules.resting
    ]
    if rules.floors:
        replacements = [
            (key, None if record is not None and rules.floors.covers(key, record) else record)
            for key, record in replacements
        ]
    replaced = [
        newest_stamp(version_of(record)) for _, record in replacements if record is not None
    ]
    newest = max(prepared.write.newest, *replaced, 0)
    write = replace(
        prepared.write,
        newest=newest,
        drops=merge.drops,
        marks=merge.marks,
        replacements=replacements,
        replaces=merge.replaces,
        bounds=rules.bounds,
        resting=merge.resting,
        earlier=merge.earlier,
    )
    return prepared._replace(write=write)


def _without_dropped(entries: list[tuple[bytes, bytes]], rules: Rules) -> list[tuple[bytes, bytes]]:
    """Leave out records that were dropped: the sender does not know of the drop yet."""
    if not rules.floors:
        return entries
    return [entry for entry in entries if not rules.floors.covers(*entry)]


def _prepare_records(
    entries: list[tuple[bytes, bytes]], places: Sequence[int], rejected: Rejected, rules: Rules
) -> Prepared:
    """Reject records that are corrupt, from the future, or of a value that is not valid."""
    span = _valid_stamps(entries, rules)
    if span is not None:
        write = Write(
            entries,
            rules.now,
            span.newest,
            horizons=rules.horizons,
            upper_bound=rules.upper_bound,
            oldest=span.oldest,
            promises=rules.promises,
            may_spend_reserve=True,
            bounds=rules.bounds,
        )
        return Prepared(write, rejected, places)
    good: list[tuple[bytes, bytes]] = []
    kept: list[int] = []
    newest = 0
    for place, entry in zip(places, entries, strict=True):
        error = _bad_record(*entry, rules)
        if error is not None:
            rejected.append([place, error.code, str(error)])
            continue
        good.append(entry)
        kept.append(place)
        newest = max(newest, newest_stamp(version_of(entry[1])))
    write = Write(
        good,
        rules.now,
        newest,
        horizons=rules.horizons,
        upper_bound=rules.upper_bound,
        promises=rules.promises,
        may_spend_reserve=True,
        bounds=rules.bounds,
    )
    return Prepared(write, rejected, kept)


def _valid_stamps(entries: Sequence[tuple[bytes, bytes]], rules: Rules) -> StampRange | None:
    """Return the oldest and newest stamp of records if all of them are valid, else None.

    It checks many records at once, faster than ``_bad_record``: a peer that is streaming receives
    all its data through here.
    """
    if not rules.has_spare or not entries:
        return None
    if not loops.are_sound(entries):
        return None
    flags = {record[VERSION_END] for _, record in entries}
    if max(flags) >= _REGISTER:
        return None  # registers have other rules
    span = stamp_range_of([version_of(record) for _, record in entries])
    if flags == {0}:
        payloads = [record[HEAD_BYTES:] for _, record in entries]
    else:
        payloads = [
            record[HEAD_BYTES:] for _, record in entries if not record[VERSION_END] & TOMBSTONE
        ]
    is_late = stamp_milliseconds(span.newest) - rules.present > rules.max_skew
    return None if is_late or codec.malformed_payloads(payloads) else span


def _bad_record(storage_key: bytes, record: bytes, rules: Rules) -> DStashError | None:
    if not is_sound(storage_key, record):
        return CorruptRecord("the record fails its checksum")
    version = version_of(record)
    if record[VERSION_END] & _REGISTER:
        return _bad_register(storage_key, record, rules)
    if not record[VERSION_END] & RecordFlag.TOMBSTONE:
        if not rules.has_spare:
            return DiskFull("the disk is full; only deletes still succeed")
        if codec.malformed_payloads([record[HEAD_BYTES:]]):
            return ProtocolError("the record's value is not one well-formed msgpack object")
    try:
        check_skew(version, rules)
    except ClockSkew as error:
        # Until this is certain, the sender must not treat a record of another replica as invalid.
        is_certain = newest_stamp(version) > rules.latest
        return error if is_certain else Busy(f"{error}; other members are asked what they hold")
    return None


def _bad_register(storage_key: bytes, record: bytes, rules: Rules) -> DStashError | None:
    """Check a register that is merged.

    The clock is no bound: a quorum has promised its round, and may have chosen it (V3).
    """
    if not is_register_key(storage_key):
        return ProtocolError("a register is in an index without registers")
    try:
        check_register_record(storage_key, record)
    except DStashError as error:
        return error
    is_full = not rules.has_spare and not record[VERSION_END] & TOMBSTONE
    return DiskFull("the disk is full; only deletes still succeed") if is_full else None
