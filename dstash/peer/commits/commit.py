"""Group commit: all waiting writes become one transaction with one sync, then all are acked.

The method is from DeWitt et al., "Implementation Techniques for Main Memory Database Systems"
(1984); bbolt's ``Batch`` is a model. A bad item fails alone: it is removed before the transaction
begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, starmap
from operator import itemgetter
from typing import Any, Final, NamedTuple

from dstash.errors import (
    BelowFloor,
    Busy,
    ClockSkew,
    CorruptRecord,
    DiskFull,
    DStashError,
    LimitError,
    Misrouted,
    ProtocolError,
    from_wire,
)
from dstash.limits import MAX_KEY_BYTES, MAX_TTL_SECONDS, MAX_VALUE_BYTES, MOST_REPLACED
from dstash.peer.admission.requests import Ticket
from dstash.peer.admission.write_floor import check_floor
from dstash.peer.admission.writes import Internal, WaitingWrite
from dstash.peer.commits.recent_deletes import RecentDeletes
from dstash.peer.telemetry.meters import CommitStats, outcome_of
from dstash.store.interface import Merged, Store, Write
from dstash.store.record import (
    HEAD_BYTES,
    VERSION_END,
    Keyspace,
    head,
    is_sound,
    locate,
    partition_in,
    partition_of,
    seal,
    split_storage_key,
    version_of,
)
from dstash.types import RecordFlag
from dstash.version import (
    MAX_STAMP,
    VERSION_BYTES,
    WRITER_BYTES,
    Stamp,
    StampRange,
    Version,
    newest_stamp,
    pack,
    stamp_milliseconds,
    stamp_range_of,
)
from dstash.wire import codec
from dstash.wire.messages import Apply, Delete, Error, Put, Stored
from dstash.wire.replication import Push
from dstash.wire.shapes import Message

_KEY: Final = itemgetter(0)
_PREFIX: Final = itemgetter(slice(2))

#: The payload of a tombstone is empty.
_NO_PAYLOAD: Final = b""
#: A plain number: arithmetic with flags takes longer than to check the record.
_TOMBSTONE: Final = RecordFlag.TOMBSTONE.value

#: The error of a client's record that was refused because it is below the horizon.
_TOO_LATE: Final = "the record is too old: tombstones of its time may have been dropped already"
#: The error of a record that must wait until replicas have agreed on a horizon.
_AGREEING: Final = "replicas are agreeing on a horizon; retry in a moment"

Rejected = list[list[Any]]


class Prepared(NamedTuple):
    """A write that is ready for the transaction, and the items that were rejected before it."""

    write: Write
    rejected: Rejected
    #: For each entry of the write, its position in the request.
    places: Sequence[int]

    def without(self, left_out: set[int], error: DStashError) -> Prepared:
        """Return a copy that rejects the entries at the given places of the write."""
        kept = [number for number in range(len(self.write.entries)) if number not in left_out]
        rejected = [[self.places[number], error.code, str(error)] for number in sorted(left_out)]
        return Prepared(
            replace(self.write, entries=[self.write.entries[number] for number in kept]),
            self.rejected + rejected,
            [self.places[number] for number in kept],
        )

    @property
    def is_empty(self) -> bool:
        """Whether no entry is left to write."""
        write = self.write
        return not (write.entries or write.drops or write.marks or write.replacements)


class Rules(NamedTuple):
    """The rules that a commit checks its writes against.

    ``present``: the time (milliseconds since 1970) that versions are compared with; a version is
    at most ``max_skew`` ahead of it. It is not ``now``, because this peer's clock may be wrong.
    Stamps above ``latest`` are certainly from the future: they are refused, and a stored record
    with one gives way to writes of clients. Between the two, this peer cannot decide yet.
    ``floor``: the highest horizon. Writes of clients up to it are refused, even if they arrived
    before it was set. ``promises`` (by partition): repairs stamped up to this must wait.
    ``horizons`` (by partition): tombstones up to this may have been dropped. See
    ``cluster/replication/tombstone_gc.py``. ``owned``: the partitions of this peer.
    ``has_room``: false when only deletes and repairs may be written; ``has_spare``: false when only
    deletes may. ``upper_bound``: the highest stamp that a corrupt record may have had.
    """

    now: int
    present: int
    max_skew: int
    floor: Stamp
    promises: Mapping[int, Stamp]
    horizons: Sequence[Stamp]
    owned: frozenset[int]
    has_room: bool
    has_spare: bool = True
    upper_bound: Stamp = MAX_STAMP
    latest: Stamp = MAX_STAMP


_Ready = tuple[WaitingWrite, Prepared]


def _puts(ready: _Ready) -> set[int]:
    """Return the places of entries that may not use the reserve of the disk."""
    write = ready[1].write
    return set() if write.may_spend_reserve else set(range(len(write.entries)))


def _live_records(ready: _Ready) -> set[int]:
    """Return the places of entries that are not tombstones."""
    entries = enumerate(ready[1].write.entries)
    return {place for place, (_, record) in entries if not record[VERSION_END] & _TOMBSTONE}


@dataclass(slots=True)
class Commit:
    """A group of writes that is committed together. ``run`` commits it, on any thread."""

    waiting: list[WaitingWrite]
    rules: Rules
    replies: list[tuple[Ticket, Message]] = field(default_factory=list)
    #: The result of each internal write.
    done: list[tuple[Internal, DStashError | None]] = field(default_factory=list)
    #: How many keys of each other write were accepted.
    sizes: list[int] = field(default_factory=list)
    #: Partitions with records that may have changed.
    changed: set[int] = field(default_factory=set)
    #: Storage keys whose records were found corrupt.
    corrupt: list[bytes] = field(default_factory=list)
    #: Whether versions were refused because they are from the future.
    skewed: bool = False
    #: Set when the disk failed for good: the peer must stop.
    fatal: DStashError | None = None
    #: Keys that recent deletes found; None to keep no such memory.
    recent: RecentDeletes | None = None

    def run(self, store: Store) -> None:
        """Commit all valid writes; afterwards every write has its answer."""
        prepared = [(write, self._prepare(write)) for write in self.waiting]
        ready = [(write, result) for write, result in prepared if isinstance(result, Prepared)]
        for write, result in prepared:
            if isinstance(result, DStashError):
                self._refuse(write, result)
        for leave_out in (_puts, _live_records, None):
            try:
                merged = store.commit([item.write for _, item in ready]) if ready else []
            except DStashError as error:
                if isinstance(error, DiskFull) and leave_out is not None:
                    ready = self._without(ready, leave_out, error)
                    continue
                for write, _ in ready:
                    self._refuse(write, error)
                self.fatal = error if store.check_writable() else None
                return
            for (write, item), outcome in zip(ready, merged, strict=True):
                self._accept(write, item, outcome)
            return

    def _without(
        self, ready: list[_Ready], leave_out: Callable[[_Ready], set[int]], error: DiskFull
    ) -> list[_Ready]:
        """Refuse the entries that lack room, so that the other entries can be stored."""
        kept: list[_Ready] = []
        for write, item in ready:
            left_out = leave_out((write, item))
            rest = item.without(left_out, error) if left_out else item
            if rest.is_empty:
                self._refuse(write, error)
            else:
                kept.append((write, rest))
        return kept

    def note(self, took: float, sync: float) -> None:
        """Note in traced requests how long (seconds) the commit and its sync took."""
        for write in self.waiting:
            if write.ticket.notes is not None:
                write.ticket.notes.committed(took, sync, len(self.waiting))

    def stats(self, took: float, sync: float) -> CommitStats:
        """Return what the meters count of a commit that has run.

        Args:
            took: seconds in all.
            sync: seconds of that until the data was on disk.
        """
        outcomes = {ticket: outcome_of(message) for ticket, message in self.replies}
        writes = [
            (type(write.message).__name__, outcomes.get(write.ticket, "Unanswered"))
            for write in self.waiting
            if not isinstance(write.message, Internal)
        ]
        writes += [
            ("Internal", "Stored" if error is None else type(error).__name__)
            for _, error in self.done
        ]
        size = sum(write.weight for write in self.waiting)
        return CommitStats(took, sync, len(self.waiting), size, self.sizes, writes)

    def _prepare(self, waiting: WaitingWrite) -> Prepared | DStashError:
        try:
            return _PREPARE[type(waiting.message)](waiting.message, waiting.space, self.rules)
        except DStashError as error:
            return error

    def _refuse(self, waiting: WaitingWrite, error: DStashError) -> None:
        self.skewed = self.skewed or isinstance(error, ClockSkew | Busy)
        if isinstance(waiting.message, Internal):
            self.done.append((waiting.message, error))
        else:
            self.replies.append((waiting.ticket, Error.of(error)))

    def _accept(self, waiting: WaitingWrite, prepared: Prepared, merged: Merged) -> None:
        write = prepared.write
        touched = map(_KEY, chain(write.entries, write.drops, write.replacements))
        prefixes = set(map(_PREFIX, touched))
        codes = {code for _, code, _ in prepared.rejected}
        self.skewed = self.skewed or bool({ClockSkew.code, Busy.code} & codes)
        self.corrupt += [write.entries[place][0] for place in merged.corrupt]
        self.changed.update(int.from_bytes(prefix, "big") for prefix in prefixes)
        if self.recent is not None and not isinstance(waiting.message, Put | Delete):
            self.recent.note(write.entries, merged.existed, self.rules.now)
        if isinstance(waiting.message, Internal):
            refusals = [from_wire(code, text, {}) for _, code, text in prepared.rejected]
            refusals += [Busy(_AGREEING)] if merged.promised else []
            self.done.append((waiting.message, next(iter(refusals), None)))
        else:
            self.sizes.append(len(write.entries))
            if self.recent is not None and isinstance(waiting.message, Delete):
                keys = list(map(_KEY, write.entries))
                version, earlier = waiting.message.version, write.replaces
                self.recent.answer(version, keys, merged.existed, self.rules.now, earlier)
            self.replies.append((waiting.ticket, _answer(waiting.message, prepared, merged)))


def check_skew(version: bytes, rules: Rules) -> None:
    """Refuse a version from the future.

    Raises:
        ClockSkew: the text states how far the version is ahead of the cluster clock.
    """
    ahead = stamp_milliseconds(newest_stamp(version)) - rules.present
    if ahead > rules.max_skew:
        raise ClockSkew(
            f"version is {ahead} ms ahead of the cluster's clock; allowed are {rules.max_skew} ms",
            ahead_ms=ahead,
        )


def _prepare_put(message: Put, space: Keyspace, rules: Rules) -> Prepared:
    if not rules.has_room:
        raise DiskFull("the disk is full; puts are refused, reads and deletes go on")
    _check_client_version(message.version, rules)
    if message.expiry > rules.now + MAX_TTL_SECONDS * 1000:
        raise LimitError("the time to live is longer than 100 years")
    keys, payloads = codec.unpack_blobs(message.keys), codec.unpack_blobs(message.payloads)
    codec.expect_even(keys, payloads)
    rejected = _bad_keys(keys) + _bad_payloads(payloads)
    places, keys, payloads = _without(rejected, keys, payloads)
    entries = seal(space, keys, head(message.version, 0, message.expiry), payloads)
    return Prepared(_client_write(entries, message, rules), rejected, places)


def _prepare_delete(message: Delete, space: Keyspace, rules: Rules) -> Prepared:
    _check_client_version(message.version, rules)
    keys = codec.unpack_blobs(message.keys)
    rejected = _bad_keys(keys)
    places, keys, _ = _without(rejected, keys, keys)
    tombstone = head(message.version, RecordFlag.TOMBSTONE)
    entries = seal(space, keys, tombstone, [_NO_PAYLOAD] * len(keys))
    write = _client_write(entries, message, rules)
    write.report_existed = write.may_spend_reserve = True
    return Prepared(write, rejected, places)


def _client_write(entries: list[tuple[bytes, bytes]], message: Put | Delete, rules: Rules) -> Write:
    return Write(
        entries,
        rules.now,
        newest_stamp(message.version),
        upper_bound=rules.upper_bound,
        version=message.version,
        latest=rules.latest,
        replaces=_replaced(message.replaces),
    )


def _replaced(packed: bytes) -> frozenset[Version]:
    if not packed:
        return frozenset()
    if len(packed) % VERSION_BYTES or len(packed) > MOST_REPLACED * VERSION_BYTES:
        raise ProtocolError(
            f"a write replaces at most {MOST_REPLACED} versions of {VERSION_BYTES} bytes, "
            f"not {len(packed)} bytes"
        )
    places = range(0, len(packed), VERSION_BYTES)
    return frozenset(packed[place : place + VERSION_BYTES] for place in places)


def _prepare_apply(message: Apply, space: Keyspace, rules: Rules) -> Prepared:
    keys, records = codec.unpack_blobs(message.keys), codec.unpack_blobs(message.records)
    codec.expect_even(keys, records)
    rejected = _bad_keys(keys)
    bad = {entry[0] for entry in rejected}
    good = [place for place in range(len(keys)) if place not in bad]
    located = locate(space, [keys[place] for place in good])
    entries = [(key, records[place]) for key, place in zip(located, good, strict=True)]
    return _prepare_records(entries, good, rejected, rules)


def _prepare_push(message: Push, space: None, rules: Rules) -> Prepared:
    entries = codec.unpack_entries(message.keys, message.records)
    for storage_key, _ in entries:
        _check_storage_key(storage_key, rules.owned)
    return _prepare_records(entries, range(len(entries)), [], rules)


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
    )
    return Prepared(write, rejected, kept)


def _prepare_internal(message: Internal, space: None, rules: Rules) -> Prepared:
    """Prepare the valid entries; the task gets the error of the rejected entries after the commit.

    A comparison may fetch records whose partition has moved away meanwhile; they are dropped.
    """
    merge = message.merge
    entries = [entry for entry in merge.entries if partition_in(entry[0]) in rules.owned]
    prepared = _prepare_records(entries, range(len(entries)), [], rules)
    replaced = [
        newest_stamp(version_of(record)) for _, record in merge.replacements if record is not None
    ]
    newest = max(prepared.write.newest, *replaced, 0)
    write = replace(
        prepared.write,
        newest=newest,
        drops=merge.drops,
        marks=merge.marks,
        replacements=merge.replacements,
        replaces=merge.replaces,
    )
    return prepared._replace(write=write)


_PREPARE: Final[dict[type, Callable[[Any, Any, Rules], Prepared]]] = {
    Put: _prepare_put,
    Delete: _prepare_delete,
    Apply: _prepare_apply,
    Push: _prepare_push,
    Internal: _prepare_internal,
}


def _check_client_version(version: bytes, rules: Rules) -> None:
    if len(version) != VERSION_BYTES:
        raise ProtocolError(f"a version has {VERSION_BYTES} bytes, not {len(version)}")
    check_skew(version, rules)
    check_floor(version, rules.floor)


def _check_storage_key(storage_key: bytes, owned: frozenset[int]) -> None:
    if len(storage_key) < 4 or len(storage_key) < 4 + storage_key[2]:
        raise ProtocolError("a storage key is too short")
    partition, _, key = split_storage_key(storage_key)
    if partition != partition_of(key):
        raise ProtocolError("a storage key stands in the wrong partition")
    if partition not in owned:
        raise Misrouted(f"this peer holds no replica of partition {partition}")


def _answer(message: Message, prepared: Prepared, merged: Merged) -> Stored:
    places = prepared.places
    rejected = [[places[place], 0, version] for place, version in merged.superseded]
    rejected += [_superseded_by_corrupt(message, prepared, place) for place in merged.corrupt]
    rejected += [[places[place], Busy.code, _AGREEING] for place in merged.promised]
    if isinstance(message, Apply):  # repairs need no ack
        rejected += [[places[place], BelowFloor.code, _TOO_LATE] for place in merged.past]
    existed = b""
    if isinstance(message, Delete):
        by_place = bytearray(max(places, default=-1) + 1)
        for place, flag in zip(places, merged.existed, strict=True):
            by_place[place] = flag
        existed = bytes(by_place)
    return Stored(prepared.rejected + rejected, existed)


def _superseded_by_corrupt(message: Message, prepared: Prepared, place: int) -> list[Any]:
    """Answer a write to a key whose stored record is corrupt and had an unknown version.

    A client gets the highest version that the record may have had, and stamps past it. A record
    that is applied keeps its version, so it must wait unless that is above this bound.
    """
    if isinstance(message, Put | Delete):
        return [prepared.places[place], 0, pack(prepared.write.upper_bound, b"\xff" * WRITER_BYTES)]
    text = "the stored record is corrupt, and other replicas have not yet returned its version"
    return [prepared.places[place], CorruptRecord.code, text]


def _bad_keys(keys: Sequence[bytes]) -> Rejected:
    if not keys or (min(map(len, keys)) >= 1 and max(map(len, keys)) <= MAX_KEY_BYTES):
        return []
    text = f"a key must have 1 to {MAX_KEY_BYTES} bytes"
    return [
        [place, LimitError.code, f"{text}, not {len(key)}"]
        for place, key in enumerate(keys)
        if not 1 <= len(key) <= MAX_KEY_BYTES
    ]


def _bad_payloads(payloads: Sequence[bytes]) -> Rejected:
    rejected: Rejected = [
        [place, ProtocolError.code, "the value is not one well-formed msgpack object"]
        for place in codec.malformed_payloads(payloads)
    ]
    if max(map(len, payloads), default=0) > MAX_VALUE_BYTES:
        rejected += [
            [place, LimitError.code, f"a value has at most {MAX_VALUE_BYTES} bytes"]
            for place, payload in enumerate(payloads)
            if len(payload) > MAX_VALUE_BYTES
        ]
    return rejected


def _valid_stamps(entries: Sequence[tuple[bytes, bytes]], rules: Rules) -> StampRange | None:
    """Return the oldest and newest stamp of records if all of them are valid, else None.

    It checks many records at once, faster than ``_bad_record``: a peer that is streaming receives
    all its data through here.
    """
    if not rules.has_spare or not entries:
        return None
    if not all(starmap(is_sound, entries)):
        return None
    span = stamp_range_of([version_of(record) for _, record in entries])
    payloads = [
        record[HEAD_BYTES:] for _, record in entries if not record[VERSION_END] & _TOMBSTONE
    ]
    is_late = stamp_milliseconds(span.newest) - rules.present > rules.max_skew
    return None if is_late or codec.malformed_payloads(payloads) else span


def _bad_record(storage_key: bytes, record: bytes, rules: Rules) -> DStashError | None:
    if not is_sound(storage_key, record):
        return CorruptRecord("the record fails its checksum")
    version = version_of(record)
    if not record[VERSION_END] & RecordFlag.TOMBSTONE:
        if not rules.has_spare:
            return DiskFull("the disk is full; only deletes go on")
        if codec.malformed_payloads([record[HEAD_BYTES:]]):
            return ProtocolError("the record's value is not one well-formed msgpack object")
    try:
        check_skew(version, rules)
    except ClockSkew as error:
        # Until this is certain, the sender must not treat a record of another replica as invalid.
        is_certain = newest_stamp(version) > rules.latest
        return error if is_certain else Busy(f"{error}; other members are asked what they hold")
    return None


def _without(
    rejected: Rejected, keys: list[bytes], others: list[bytes]
) -> tuple[Sequence[int], list[bytes], list[bytes]]:
    """Return (places, keys, others) less the rejected places."""
    if not rejected:
        return range(len(keys)), keys, others
    bad = {entry[0] for entry in rejected}
    places = [place for place in range(len(keys)) if place not in bad]
    return places, [keys[place] for place in places], [others[place] for place in places]
