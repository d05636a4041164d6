"""Votes in a transaction: what peers propose, and registers that come from other replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dstash.store.record import ABSENT, partition_in, version_of
from dstash.store.register.ballot import (
    EARLIER_WRITER,
    Promise,
    pack_promise,
    round_of,
    unpack_promise,
)
from dstash.store.register.voter import (
    Bounds,
    Held,
    Verdict,
    held,
    judge_accept,
    judge_merge,
    judge_prepare,
    visible,
)
from dstash.version import Stamp, Version, stamp_at, stamp_milliseconds, write_stamp


class VoteTransaction(Protocol):
    """The part of a write transaction that votes need."""

    def get(self, storage_key: bytes) -> bytes | None:
        """Return a record as of this transaction."""
        ...

    def put(self, storage_key: bytes, record: bytes) -> object:
        """Store a record."""
        ...

    def promise(self, storage_key: bytes) -> bytes | None:
        """Return a promise as of this transaction, as stored."""
        ...

    def put_all(self, entries: Sequence[tuple[bytes, bytes]]) -> object:
        """Store records."""
        ...

    def put_promise(self, storage_key: bytes, promise: bytes) -> object:
        """Store a promise."""
        ...

    def put_promises(self, entries: Sequence[tuple[bytes, bytes]]) -> object:
        """Store promises."""
        ...

    def drop_promise(self, storage_key: bytes) -> object:
        """Remove a promise, if there is one."""
        ...

    def promises_between(self, begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """Return the promises of a range of storage keys, as stored."""
        ...


@dataclass(frozen=True, slots=True)
class Prepares:
    """A request to promise a round for some keys; round 0 only asks what is held.

    ``known``: for each key, the version that the proposer has, so that its record is not sent.
    ``is_needed``: the round may be ahead of the clocks, because no quorum exists below it (P10).
    """

    keys: Sequence[bytes]
    promise: Promise
    known: Sequence[Version]
    is_needed: bool = False


@dataclass(frozen=True, slots=True)
class Accepts:
    """A request to take registers: (storage key, record) pairs."""

    entries: Sequence[tuple[bytes, bytes]]


class Vote(NamedTuple):
    """The answer of a voter for one key.

    Attributes:
        verdict: whether it voted.
        version: of the record that it holds; all zero without one.
        past: the round that the next attempt must exceed.
        horizon: of the partition; its floor, if that may be a horizon and is higher.
        record: the record, if it is above the version that the proposer knows.
        stamp: what it voted for; 0 if nothing changed.
    """

    verdict: Verdict
    version: Version
    past: int
    horizon: Stamp
    record: bytes | None = None
    stamp: Stamp = 0


class Limits(NamedTuple):
    """What votes on some keys depend on: the limits, and the horizons by partition."""

    bounds: Bounds
    horizons: Sequence[Stamp] | None

    def held(self, transaction: VoteTransaction, storage_key: bytes) -> Held:
        """Return what the voter holds for a key."""
        return held(
            storage_key,
            transaction.get(storage_key),
            transaction.promise(storage_key),
            self.horizon(storage_key),
            self.bounds,
        )

    def horizon(self, storage_key: bytes) -> Stamp:
        """Return the horizon of a key."""
        return self.horizons[partition_in(storage_key)] if self.horizons is not None else 0

    def reaped(self, storage_key: bytes) -> Stamp:
        """Return the stamp up to which requests may have left no trace, for new registers (D3)."""
        floor = self.bounds.floor_of(storage_key) if self.bounds.floors_are_horizons else 0
        return max(self.horizon(storage_key), floor)


def vote(transaction: VoteTransaction, request: Prepares | Accepts, limits: Limits) -> list[Vote]:
    """Vote on each key of a request, in order."""
    if isinstance(request, Prepares):
        pairs = zip(request.keys, request.known, strict=True)
        return [prepare(transaction, key, request, known, limits) for key, known in pairs]
    return [accept(transaction, key, record, limits) for key, record in request.entries]


def prepare(
    transaction: VoteTransaction,
    storage_key: bytes,
    request: Prepares,
    known: Version,
    limits: Limits,
) -> Vote:
    """Promise a round for a key, or refuse it; round 0 only asks what is held."""
    state, number = limits.held(transaction, storage_key), request.promise.round
    stamp = 0
    voted = Verdict.UNSETTLED if state.is_unsettled else Verdict.VOTED
    if state.is_corrupt:
        voted = Verdict.BLIND if number else Verdict.CORRUPT
    if number:
        verdict = judge_prepare(state, number, limits.bounds, is_needed=request.is_needed)
        if verdict is Verdict.VOTED:
            earlier = state.promise.unsettled if state.promise and state.is_unsettled else 0
            given = request.promise._replace(earlier=earlier)
            transaction.put_promise(storage_key, pack_promise(storage_key, given))
            stamp, verdict = stamp_at(number), voted
    else:
        verdict = voted
    record = visible(state)
    version = version_of(record) if record is not None else ABSENT
    is_news = record is not None and version > known
    return Vote(
        verdict,
        version,
        _past(state, limits),
        limits.reaped(storage_key),
        record if is_news else None,
        stamp,
    )


def accept(transaction: VoteTransaction, storage_key: bytes, record: bytes, limits: Limits) -> Vote:
    """Take a register, or refuse it."""
    state = limits.held(transaction, storage_key)
    verdict = judge_accept(state, record, limits.bounds)
    version, stamp = state.version, 0
    if verdict is Verdict.VOTED:
        version = version_of(record)
        if record != state.record:
            _take(transaction, storage_key, record, state)
            stamp = write_stamp(version)
    return Vote(verdict, version, _past(state, limits), limits.reaped(storage_key), None, stamp)


def _past(state: Held, limits: Limits) -> int:
    lowest = max(state.lowest, state.floor, limits.bounds.floor)
    return max(state.round, stamp_milliseconds(lowest))


def _take(transaction: VoteTransaction, storage_key: bytes, record: bytes, state: Held) -> None:
    """Store a register, and remove the promise that its round reaches."""
    transaction.put(storage_key, record)
    if state.promise is not None and state.promise.round <= round_of(version_of(record)):
        transaction.drop_promise(storage_key)


def merge_register(
    transaction: VoteTransaction, storage_key: bytes, record: bytes, limits: Limits
) -> tuple[Verdict, Held]:
    """Merge a register from another replica; returns the verdict, and what was held before."""
    state = limits.held(transaction, storage_key)
    verdict = judge_merge(state, record)
    if verdict is Verdict.VOTED and record != state.record:
        _take(transaction, storage_key, record, state)
    return verdict, state


def rest(transaction: VoteTransaction, partition: int, bound: Stamp) -> None:
    """Make the promises in a partition those of an earlier voter, because it is streamed (T2)."""
    begin, end = partition.to_bytes(2, "big"), (partition + 1).to_bytes(2, "big")
    for storage_key, stored in transaction.promises_between(begin, end):
        promise = unpack_promise(storage_key, stored, bound)
        take_earlier(transaction, storage_key, promise.round, bound)


def take_earlier(
    transaction: VoteTransaction, storage_key: bytes, number: int, bound: Stamp
) -> None:
    """Take the promise of a voter from which this store was streamed (T2).

    Args:
        transaction: the transaction.
        storage_key: the key.
        number: the round that was promised.
        bound: a stamp above which this store had promised no round; see ``unpack_promise``.
    """
    stored = transaction.promise(storage_key)
    before = Promise(0, EARLIER_WRITER)
    if stored is not None:
        before = unpack_promise(storage_key, stored, bound)
        writer = before.writer or EARLIER_WRITER  # that of a corrupt promise is not known
        before = before._replace(writer=writer, earlier=before.unsettled)
    promise = before.with_earlier(number)
    transaction.put_promise(storage_key, pack_promise(storage_key, promise))
