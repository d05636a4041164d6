"""Votes on many registers in one request: the same answers as ``votes.py``, in fewer steps.

The rules of a voter are in ``voter.py``. Here they are written out for the plain case, in which
nearly all registers of a batch are: a sound register or none, no promise but that of the round
that is accepted, nothing corrupt, and a vote that is given. ``votes.py`` decides all other cases.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from dstash.store.record import ABSENT, CHECKSUM_END, VERSION_END, is_sound
from dstash.store.register.ballot import pack_promise
from dstash.store.register.voter import Verdict, no_drops
from dstash.store.register.votes import (
    Accepts,
    Limits,
    Prepares,
    Vote,
    VoteTransaction,
    accept,
    prepare,
    vote,
)
from dstash.types import RecordFlag
from dstash.version import (
    COUNTER_BITS,
    WRITE_BYTES,
    Stamp,
    stamp_at,
    stamp_milliseconds,
    write_stamp,
)

#: Requests with fewer keys are judged key by key.
_MIN_KEYS: Final = 4

_REGISTER: Final = RecordFlag.REGISTER.value
_STAMP_BYTES: Final = 8
_STAMP_END: Final = CHECKSUM_END + _STAMP_BYTES
_PROMISE_CHECKSUM_BYTES: Final = 8


class _Lowest(NamedTuple):
    """What all keys of a partition have in common.

    Attributes:
        stamp: that rounds must exceed.
        past: the round of that stamp.
        reaped: the horizon that votes report.
    """

    stamp: Stamp
    past: int
    reaped: Stamp


class _Partitions(dict[bytes, _Lowest]):
    """By the first two bytes of a storage key, what its partition requires."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        bounds = limits.bounds
        self._horizons, self._floors = limits.horizons, bounds.floors
        self._floor = bounds.floor
        self._is_horizon = bounds.floors_are_horizons

    def __missing__(self, prefix: bytes) -> _Lowest:
        partition = int.from_bytes(prefix)
        horizon = self._horizons[partition] if self._horizons is not None else 0
        floor = self._floors[partition] if self._floors else 0
        stamp = max(horizon, floor, self._floor)
        reaped = max(horizon, floor) if self._is_horizon else horizon
        found = self[prefix] = _Lowest(stamp, stamp_milliseconds(stamp), reaped)
        return found


def vote_all(
    transaction: VoteTransaction, request: Prepares | Accepts, limits: Limits
) -> list[Vote]:
    """Vote on each key of a request, in order: as ``vote`` does."""
    bounds = limits.bounds
    keys = request.keys if isinstance(request, Prepares) else [key for key, _ in request.entries]
    is_plain = bounds.dropped_at is no_drops and len(keys) >= _MIN_KEYS
    if not is_plain or len(set(keys)) != len(keys):
        return vote(transaction, request, limits)
    if isinstance(request, Prepares):
        return _prepare_all(transaction, request, limits)
    return _accept_all(transaction, request, limits)


def _prepare_all(transaction: VoteTransaction, request: Prepares, limits: Limits) -> list[Vote]:
    number, corruption = request.promise.round, limits.bounds.corruption
    stamp = stamp_at(number)
    if stamp > limits.bounds.latest:
        return vote(transaction, request, limits)
    get, get_promise, partitions = transaction.get, transaction.promise, _Partitions(limits)
    promises: list[tuple[bytes, bytes]] = []
    votes: list[Vote] = []
    #: By what they have in common, the votes on absent registers.
    absent: dict[_Lowest, Vote] = {}
    for storage_key, known in zip(request.keys, request.known, strict=True):
        lowest = partitions[storage_key[:2]]
        stored = get(storage_key)
        is_plain = (
            (not number or stamp > lowest.stamp)
            and get_promise(storage_key) is None
            and storage_key not in corruption
        )
        if is_plain and stored is None:
            given = absent.get(lowest)
            if given is None:
                given = Vote(Verdict.VOTED, ABSENT, lowest.past, lowest.reaped, None, stamp)
                absent[lowest] = given
        elif is_plain and stored is not None and _is_plain(storage_key, stored):
            version = stored[CHECKSUM_END:VERSION_END]
            held = write_stamp(version) >> COUNTER_BITS
            if number and number <= held:
                votes.append(prepare(transaction, storage_key, request, known, limits))
                continue
            given = Vote(
                Verdict.VOTED,
                version,
                max(held, lowest.past),
                lowest.reaped,
                stored if version > known else None,
                stamp,
            )
        else:
            votes.append(prepare(transaction, storage_key, request, known, limits))
            continue
        votes.append(given)
        if number:
            promises.append((storage_key, pack_promise(storage_key, request.promise)))
    transaction.put_promises(promises)
    return votes


def _accept_all(transaction: VoteTransaction, request: Accepts, limits: Limits) -> list[Vote]:
    corruption, latest = limits.bounds.corruption, limits.bounds.latest
    get, get_promise, partitions = transaction.get, transaction.promise, _Partitions(limits)
    drop_promise = transaction.drop_promise
    taken: list[tuple[bytes, bytes]] = []
    votes: list[Vote] = []
    #: The votes on new registers that were promised, of one version.
    plain: dict[_Lowest, Vote] = {}
    version = body = b""
    number = stamp = 0
    for storage_key, record in request.entries:
        if record[CHECKSUM_END:VERSION_END] != version:
            version = record[CHECKSUM_END:VERSION_END]
            stamp = write_stamp(version)
            number = stamp_milliseconds(stamp)
            body = number.to_bytes(8, "big") + version[_STAMP_BYTES:WRITE_BYTES]
            plain = {}
        lowest = partitions[storage_key[:2]]
        stored, promise = get(storage_key), get_promise(storage_key)
        is_plain = lowest.stamp < stamp <= latest and storage_key not in corruption
        past = lowest.past
        if is_plain and promise is not None:
            checksum = promise[:_PROMISE_CHECKSUM_BYTES]
            is_plain = (
                promise[_PROMISE_CHECKSUM_BYTES:] == body  # of this round, and no earlier voter's
                and xxh3_64_digest(body, xxh3_64_intdigest(storage_key)) == checksum
            )
            past = max(past, number)
        if is_plain and stored is not None:
            held = int.from_bytes(stored[CHECKSUM_END:_STAMP_END], "big") >> COUNTER_BITS
            is_plain = held < number and _is_plain(storage_key, stored)
            past = max(past, held)
        if not is_plain:
            votes.append(accept(transaction, storage_key, record, limits))
            continue
        taken.append((storage_key, record))
        if promise is None or stored is not None:
            given = Vote(Verdict.VOTED, version, past, lowest.reaped, None, stamp)
        else:
            try:
                given = plain[lowest]
            except KeyError:
                given = Vote(Verdict.VOTED, version, past, lowest.reaped, None, stamp)
                plain[lowest] = given
        if promise is not None:
            drop_promise(storage_key)
        votes.append(given)
    transaction.put_all(taken)
    return votes


def _is_plain(storage_key: bytes, stored: bytes) -> bool:
    """Whether a record is a sound register that is no tombstone."""
    is_live = len(stored) > VERSION_END and stored[VERSION_END] == _REGISTER
    return is_live and is_sound(storage_key, stored)
