"""A commit: all waiting writes become one transaction with one sync, then all are acked.

The method, group commit, is from DeWitt et al., "Implementation Techniques for Main Memory Database
Systems" (1984); bbolt's ``Batch`` is a model. A bad item fails alone: it is removed before the
transaction begins. The writes of clients are checked here, whole records in ``records.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any, Final

from dstash.errors import (
    BelowFloor,
    Busy,
    ClockSkew,
    CorruptRecord,
    DiskFull,
    DStashError,
    LimitError,
    Preempted,
    ProtocolError,
    from_wire,
)
from dstash.limits import MAX_TTL_SECONDS, MAX_VALUE_BYTES, MOST_REPLACED
from dstash.peer.admission.requests import Ticket
from dstash.peer.admission.write_floor import check_floor
from dstash.peer.admission.writes import Internal, WaitingWrite
from dstash.peer.commits.expiries import with_expiries
from dstash.peer.commits.recent_deletes import RecentDeletes
from dstash.peer.commits.records import prepare_apply, prepare_internal, prepare_push
from dstash.peer.commits.rules import TOMBSTONE, Prepared, Rejected, Rules, bad_keys, check_skew
from dstash.peer.commits.votes import (
    VOTES,
    answer_votes,
    corrupt_keys,
    prepare_accepts,
    prepare_promises,
    voted_keys,
)
from dstash.peer.telemetry.meters import CommitStats, outcome_of
from dstash.store.interface import LIVE, UNSURE, Merged, Store, Write
from dstash.store.record import VERSION_END, Keyspace, head
from dstash.store.register.votes import Accepts
from dstash.store.sealing import seal
from dstash.types import RecordFlag
from dstash.version import VERSION_BYTES, WRITER_BYTES, Stamp, Version, newest_stamp, pack
from dstash.wire import codec
from dstash.wire.messages import Apply, Delete, Error, Put, Stored
from dstash.wire.registers.consensus import Accept, Accepted, Prepare, Promised
from dstash.wire.replication import Push
from dstash.wire.shapes import Message

_KEY: Final = itemgetter(0)

#: The places of the only entry of a write.
_ONLY: Final = range(1)
#: Answers a put that was stored as it came.
STORED: Final = Stored([])
_STORED_PUT: Final = (Put.__name__, "Stored")

#: The payload of a tombstone is empty.
_NO_PAYLOAD: Final = b""

#: The error of a client's record that was refused because it is below the horizon.
_TOO_LATE: Final = "the record is too old: tombstones of its time may have been dropped already"
#: The error of a record that must wait until replicas have agreed on a horizon.
_AGREEING: Final = "replicas are agreeing on a horizon; retry in a moment"

#: The error of a client's record whose key has a future record here.
_CONTESTED: Final = "a record from the future is stored; other replicas are asked what they hold"
#: The error of a register that a promise forbids.
_PREEMPTED: Final = "this replica has promised a later round of the register"

_Ready = tuple[WaitingWrite, Prepared]


def _puts(ready: _Ready) -> set[int]:
    """Return the places of entries that may not use the reserve of the disk."""
    write = ready[1].write
    return set() if write.may_spend_reserve else set(range(len(write.entries)))


def _live_records(ready: _Ready) -> set[int]:
    """Return the places of entries that are not tombstones."""
    entries = enumerate(ready[1].write.entries)
    return {place for place, (_, record) in entries if not record[VERSION_END] & TOMBSTONE}


@dataclass(slots=True)
class Commit:
    """A group of writes that is committed together. ``run`` commits it, on any thread."""

    waiting: list[WaitingWrite]
    rules: Rules
    replies: list[tuple[Ticket, Message]] = field(default_factory=list)
    #: The answer to each request for votes: it counts only if its epoch has not ended (V7).
    votes: list[tuple[WaitingWrite, Promised | Accepted]] = field(default_factory=list)
    #: The result of each internal write.
    done: list[tuple[Internal, DStashError | None]] = field(default_factory=list)
    #: How many keys of each other write were accepted.
    sizes: list[int] = field(default_factory=list)
    #: Storage keys of records that may have changed.
    changed: list[bytes] = field(default_factory=list)
    #: Storage keys whose records were found corrupt.
    corrupt: list[bytes] = field(default_factory=list)
    #: Storage keys of registers that were not merged, because a later round is promised here.
    preempted: list[bytes] = field(default_factory=list)
    #: Versions of future records that writes of clients would replace.
    contested: list[Version] = field(default_factory=list)
    #: How many puts of one key were stored whose record was made on arrival.
    plain: int = 0
    #: Whether versions were refused because they are from the future.
    skewed: bool = False
    #: Set when the disk failed permanently: the peer must stop.
    fatal: DStashError | None = None
    #: Keys that recent deletes found; None to keep no such memory.
    recent: RecentDeletes | None = None
    #: The high water of the store after the commit.
    _high_water: Stamp = 0

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
            self._high_water = store.high_water
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
            if rest.is_empty or isinstance(write.message, Accept):
                self._refuse(write, error)
            else:
                kept.append((write, rest))
        return kept

    def is_light(self, most: int) -> bool:
        """Whether it has at most that many bytes of clients and peers, and nothing of a task.

        The weight of a write of a task does not show how long it takes.
        """
        return sum(write.weight for write in self.waiting) <= most and not any(
            isinstance(write.message, Internal) for write in self.waiting
        )

    @property
    def is_plain(self) -> bool:
        """Whether it stored nothing but puts of one key, each as it came."""
        return self.plain == len(self.waiting)

    @property
    def leaves_work(self) -> bool:
        """Whether a task of the peer waits for it, or has to repair what was not stored."""
        return bool(self.done or self.corrupt or self.preempted or self.skewed or self.contested)

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
        size = sum(write.weight for write in self.waiting)
        count = len(self.waiting)
        if self.is_plain:
            return CommitStats(took, sync, count, size, self.sizes, [_STORED_PUT] * count)
        outcomes = {ticket: outcome_of(message) for ticket, message in self.replies}
        outcomes |= {write.ticket: "Voted" for write, _ in self.votes}
        writes = [
            (type(write.message).__name__, outcomes.get(write.ticket, "Unanswered"))
            for write in self.waiting
            if not isinstance(write.message, Internal)
        ]
        writes += [
            ("Internal", "Stored" if error is None else type(error).__name__)
            for _, error in self.done
        ]
        return CommitStats(took, sync, count, size, self.sizes, writes)

    def _prepare(self, waiting: WaitingWrite) -> Prepared | DStashError:
        try:
            if waiting.entry is not None and isinstance(waiting.message, Put):
                return _prepare_entry(waiting.message, waiting.entry, self.rules)
            message = with_expiries(waiting)
            return _PREPARE[type(message)](message, waiting.space, self.rules)
        except DStashError as error:
            return error

    def _refuse(self, waiting: WaitingWrite, error: DStashError) -> None:
        self.skewed = self.skewed or isinstance(error, ClockSkew | Busy)
        if isinstance(waiting.message, Internal):
            self.done.append((waiting.message, error))
        else:
            self.replies.append((waiting.ticket, Error.of(error)))

    def _accept(self, waiting: WaitingWrite, prepared: Prepared, merged: Merged) -> None:
        is_stored = not (merged.superseded or merged.corrupt or merged.contested)
        if waiting.entry is not None and is_stored:
            self.plain += 1
            self.changed.append(waiting.entry[0])
            self.sizes.append(1)
            self.replies.append((waiting.ticket, STORED))
            return
        write = prepared.write
        self.changed += map(_KEY, chain(write.entries, write.drops, write.replacements))
        if isinstance(write.votes, Accepts):  # a promise changes no record
            self.changed += voted_keys(write)
        codes = {code for _, code, _ in prepared.rejected}
        self.skewed = self.skewed or bool({ClockSkew.code, Busy.code} & codes)
        self.corrupt += [write.entries[place][0] for place in merged.corrupt]
        self.corrupt += corrupt_keys(write, merged)
        self.contested += [version for _, version in merged.contested]
        self.preempted += [write.entries[place][0] for place in merged.preempted]
        if self.recent is not None and not isinstance(waiting.message, Put | Delete):
            self.recent.note(write.entries, merged.existed, self.rules.now)
            unsure = bytes((UNSURE,)) * len(merged.replaced)
            self.recent.note(merged.replaced, unsure, self.rules.now)
        if isinstance(waiting.message, Internal):
            refusals = [from_wire(code, text, {}) for _, code, text in prepared.rejected]
            refusals += [Busy(_AGREEING)] if merged.promised else []
            self.done.append((waiting.message, next(iter(refusals), None)))
        elif isinstance(waiting.message, VOTES):
            self.sizes.append(len(merged.votes))
            life = self.rules.life._replace(stamp=self._high_water)
            answer = answer_votes(waiting.message, prepared, merged, life)
            self.votes.append((waiting, answer))
        else:
            self.sizes.append(len(write.entries))
            if self.recent is not None and isinstance(waiting.message, Delete):
                keys = list(map(_KEY, write.entries))
                version, earlier = waiting.message.version, write.replaces
                self.recent.answer(version, keys, merged.existed, self.rules.now, earlier)
            lacks_data = self.rules.lacks_data
            stored = _answer(waiting.message, prepared, merged, lacks_data=lacks_data)
            self.replies.append((waiting.ticket, stored))


def _check_put(message: Put, rules: Rules) -> None:
    if not rules.has_room:
        raise DiskFull("the disk is full; puts are refused, reads and deletes still succeed")
    _check_client_version(message, rules)
    if message.expiry > rules.now + MAX_TTL_SECONDS * 1000:
        raise LimitError("the time to live is longer than 100 years")


def _prepare_entry(message: Put, entry: tuple[bytes, bytes], rules: Rules) -> Prepared:
    _check_put(message, rules)
    return Prepared(_client_write([entry], message, rules), [], _ONLY)


def _prepare_put(message: Put, space: Keyspace, rules: Rules) -> Prepared:
    _check_put(message, rules)
    keys, payloads = codec.unpack_blobs(message.keys), codec.unpack_blobs(message.payloads)
    codec.expect_even(keys, payloads)
    rejected = bad_keys(keys) + _bad_payloads(payloads)
    places, keys, payloads = _without(rejected, keys, payloads)
    entries = seal(space, keys, head(message.version, 0, message.expiry), payloads)
    return Prepared(_client_write(entries, message, rules), rejected, places)


def _prepare_delete(message: Delete, space: Keyspace, rules: Rules) -> Prepared:
    _check_client_version(message, rules)
    keys = codec.unpack_blobs(message.keys)
    rejected = bad_keys(keys)
    places, keys, _ = _without(rejected, keys, keys)
    tombstone = head(message.version, RecordFlag.TOMBSTONE)
    entries = seal(space, keys, tombstone, [_NO_PAYLOAD] * len(keys))
    write = _client_write(entries, message, rules)
    write.report_existed = write.may_spend_reserve = True
    if rules.floors:
        write.is_dropped = rules.floors.covers
    return Prepared(write, rejected, places)


def _client_write(entries: list[tuple[bytes, bytes]], message: Put | Delete, rules: Rules) -> Write:
    return Write(
        entries,
        rules.now,
        newest_stamp(message.version),
        upper_bound=rules.upper_bound,
        version=message.version,
        latest=rules.latest,
        acked=rules.acked,
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


_PREPARE: Final[dict[type, Callable[[Any, Any, Rules], Prepared]]] = {
    Put: _prepare_put,
    Delete: _prepare_delete,
    Apply: prepare_apply,
    Push: prepare_push,
    Internal: prepare_internal,
    Prepare: prepare_promises,
    Accept: prepare_accepts,
}


def _check_client_version(message: Put | Delete, rules: Rules) -> None:
    version = message.version
    if len(version) != VERSION_BYTES:
        raise ProtocolError(f"a version has {VERSION_BYTES} bytes, not {len(version)}")
    check_skew(version, rules)
    check_floor(version, max(rules.floor, rules.floors.of_index(message.index)))


def _answer(message: Message, prepared: Prepared, merged: Merged, *, lacks_data: bool) -> Stored:
    places = prepared.places
    rejected = [[places[place], 0, version] for place, version in merged.superseded]
    rejected += [_superseded_by_corrupt(message, prepared, place) for place in merged.corrupt]
    rejected += [[places[place], Busy.code, _AGREEING] for place in merged.promised]
    rejected += [[places[place], Busy.code, _CONTESTED] for place, _ in merged.contested]
    rejected += [[places[place], Preempted.code, _PREEMPTED] for place in merged.preempted]
    if isinstance(message, Apply):  # repairs need no ack
        rejected += [[places[place], BelowFloor.code, _TOO_LATE] for place in merged.past]
    existed = unsure = b""
    if isinstance(message, Delete):
        by_place = bytearray(max(places, default=-1) + 1)
        for place, flag in zip(places, merged.existed, strict=True):
            by_place[place] = flag
        existed = bytes(flag & LIVE for flag in by_place)
        if lacks_data:
            unsure = bytes(not flag & LIVE for flag in by_place)
        elif UNSURE in by_place:
            unsure = bytes(flag == UNSURE for flag in by_place)
    return Stored(prepared.rejected + rejected, existed, unsure)


def _superseded_by_corrupt(message: Message, prepared: Prepared, place: int) -> list[Any]:
    """Answer a write to a key whose stored record is corrupt and had an unknown version.

    A client gets the highest version that the record may have had, and stamps past it. A record
    that is applied keeps its version, so it must wait unless that is above this bound.
    """
    if isinstance(message, Put | Delete):
        return [prepared.places[place], 0, pack(prepared.write.upper_bound, b"\xff" * WRITER_BYTES)]
    text = "the stored record is corrupt, and other replicas have not yet returned its version"
    return [prepared.places[place], CorruptRecord.code, text]


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


def _without(
    rejected: Rejected, keys: list[bytes], others: list[bytes]
) -> tuple[Sequence[int], list[bytes], list[bytes]]:
    """Return (places, keys, others) less the rejected places."""
    if not rejected:
        return range(len(keys)), keys, others
    bad = {entry[0] for entry in rejected}
    places = [place for place in range(len(keys)) if place not in bad]
    return places, [keys[place] for place in places], [others[place] for place in places]
