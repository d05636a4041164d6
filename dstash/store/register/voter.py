"""The rules of a voter: whether it promises a round, and takes a version.

Pure functions of what the voter holds for one key: a promise and a record. ``docs/atomic.md`` names
the rules (V1 to V6) and proves what follows from them. Nothing else in dstash may decide that a
record of a register replaces another.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from dstash.store.record import ABSENT, is_sound, outranks, partition_in, version_of
from dstash.store.register.ballot import (
    Promise,
    is_rival,
    is_sound_promise,
    round_of,
    unpack_promise,
)
from dstash.store.register.header import is_collectable, is_register
from dstash.version import MAX_STAMP, Stamp, Version, stamp_at, stamp_milliseconds, write_stamp

#: How far (milliseconds) a round may exceed the voter's own round of that key, and the horizon and
#: floor of its partition, at any time: else a key of which they are ahead of the clocks could not
#: be written.
_MARGIN_MS: Final = 1

#: Corrupt keys whose bound is remembered. Past this number it rises with the high water.
_MAX_CORRUPT: Final = 10_000


class Verdict(IntEnum):
    """The answer of a voter for one key. The numbers are used in messages."""

    #: The round is promised, or the version is taken (or was before).
    VOTED = 0
    #: A later round is promised, or a later version is held.
    PREEMPTED = 1
    #: Not above the floor, the horizon, or a drop of the index.
    TOO_OLD = 2
    #: The round is too far ahead of the cluster clock.
    TOO_FAR = 3
    #: The stored record is corrupt, so the voter does not know what it has voted for.
    CORRUPT = 4
    #: The disk has no room for the record.
    NO_ROOM = 5
    #: Voted, but what it holds may be older than a round that was prepared by earlier replicas.
    UNSETTLED = 6
    #: Promised, but the stored record is corrupt, so this vote shows nothing.
    BLIND = 7


def no_drops(storage_key: bytes) -> Stamp:
    """Return 0: no index was dropped."""
    return 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of votes in one commit.

    Attributes:
        floor: ballots with a stamp up to this are refused; merges only obey horizons.
        latest: the latest stamp that the cluster clock accepts.
        high_water: the newest stamp that the store has committed.
        corruption: by storage key, a stamp above which the store had voted for nothing when its
            record or its promise was found corrupt. Votes add keys to it, and remove sound ones.
        dropped_at: returns the stamp up to which a storage key was dropped with its index; 0: not.
        floors: by partition, the highest horizon that a replica had when floors were lowered (T7);
            empty if they never were. Rounds must exceed it, too.
        floors_are_horizons: whether they count as horizons for new registers, too (D3).
    """

    floor: Stamp = 0
    latest: Stamp = MAX_STAMP
    high_water: Stamp = MAX_STAMP
    corruption: MutableMapping[bytes, Stamp] = field(default_factory=dict)
    dropped_at: Callable[[bytes], Stamp] = no_drops
    floors: Sequence[Stamp] = ()
    floors_are_horizons: bool = False

    def floor_of(self, storage_key: bytes) -> Stamp:
        """Return the floor of the partition of a key; 0 if it has none."""
        return self.floors[partition_in(storage_key)] if self.floors else 0

    def corruption_of(self, storage_key: bytes) -> Stamp:
        """Return the bound for a corrupt key; the first one found remains, up to some memory."""
        if len(self.corruption) >= _MAX_CORRUPT:
            return self.corruption.get(storage_key, self.high_water)
        return self.corruption.setdefault(storage_key, self.high_water)


class Held(NamedTuple):
    """What a voter holds for one key.

    ``record`` is None if there is none or it is not a register. If ``is_corrupt``, its version is
    unknown, but it is not above ``corruption``. ``horizon`` is that of the partition. ``lowest`` is
    the stamp that every ballot must exceed: the horizon, or that of a drop. ``floor`` (of the
    partition) is what rounds must exceed, too; merges need not (T7).
    """

    promise: Promise | None
    record: bytes | None
    is_corrupt: bool = False
    corruption: Stamp = 0
    horizon: Stamp = 0
    lowest: Stamp = 0
    floor: Stamp = 0

    @property
    def is_unsettled(self) -> bool:
        """Whether a round that an earlier voter has promised may supersede what it holds (T3)."""
        if self.promise is None or stamp_at(self.promise.unsettled) <= self.horizon:
            return False
        return round_of(self.version) <= self.promise.unsettled

    @property
    def version(self) -> Version:
        """The version of the record; all zero if there is none, or it is corrupt."""
        return ABSENT if self.record is None or self.is_corrupt else version_of(self.record)

    @property
    def round(self) -> int:
        """The highest round that the voter has voted for; of a corrupt record, that it may have."""
        known = round_of(self.version)
        if self.is_corrupt:
            known = stamp_milliseconds(self.corruption)
        return max(known, self.promise.round if self.promise else 0)

    def forbids(self, version: Version) -> bool:
        """Whether the promise forbids a version."""
        return self.promise is not None and self.promise.forbids(version)


def held(
    storage_key: bytes, stored: bytes | None, promise: bytes | None, horizon: Stamp, bounds: Bounds
) -> Held:
    """Return what a voter holds for a key.

    Args:
        storage_key: the key.
        stored: the record on disk.
        promise: the promise on disk.
        horizon: of the partition.
        bounds: the limits of votes; a corrupt record or promise is noted in ``corruption``.
    """
    is_corrupt = stored is not None and not is_sound(storage_key, stored)
    corruption = 0
    if is_corrupt or (promise is not None and not is_sound_promise(storage_key, promise)):
        corruption = bounds.corruption_of(storage_key)
    else:
        bounds.corruption.pop(storage_key, None)  # a later vote is not covered by it
    if stored is not None and not is_corrupt and not is_register(stored):
        stored = None  # written before names like this were reserved; a register replaces it
    return Held(
        unpack_promise(storage_key, promise, corruption) if promise is not None else None,
        stored,
        is_corrupt,
        corruption,
        horizon,
        max(horizon, bounds.dropped_at(storage_key)),
        bounds.floor_of(storage_key),
    )


def visible(state: Held) -> bytes | None:
    """Return the record that a voter reports.

    A record that the horizon covers counts as absent, because other replicas may have dropped it.
    """
    record = state.record
    if record is None or state.is_corrupt or is_collectable(record, state.horizon):
        return None
    return record


def judge_prepare(state: Held, number: int, bounds: Bounds, *, is_needed: bool = False) -> Verdict:
    """Return whether a voter promises a round (V1, V4, V5).

    Args:
        state: what the voter holds.
        number: the round, above 0.
        bounds: the limits of votes.
        is_needed: whether no quorum exists below this round, so that it may be too far ahead (P10).
    """
    if number <= state.round:
        return Verdict.CORRUPT if state.is_corrupt else Verdict.PREEMPTED
    if stamp_at(number) <= max(state.lowest, state.floor, bounds.floor):
        return Verdict.TOO_OLD
    is_refused = not is_needed and _is_too_far(state, number, bounds)
    return Verdict.TOO_FAR if is_refused else Verdict.VOTED


def judge_accept(state: Held, record: bytes, bounds: Bounds) -> Verdict:
    """Return whether a voter takes a record that a proposer wrote in its round (V2, V4, V5)."""
    version = version_of(record)
    if record == state.record:
        return Verdict.VOTED  # the answer was lost; a promise that came since has seen this record
    if state.forbids(version):
        return Verdict.PREEMPTED
    if state.is_corrupt:
        if write_stamp(version) <= state.corruption:
            return Verdict.CORRUPT
    elif version <= state.version or is_rival(version, state.version):
        return Verdict.PREEMPTED
    if write_stamp(version) <= max(state.lowest, state.floor, bounds.floor):
        return Verdict.TOO_OLD
    return Verdict.TOO_FAR if _is_too_far(state, round_of(version), bounds) else Verdict.VOTED


def judge_merge(state: Held, record: bytes) -> Verdict:
    """Return whether a voter takes a record from another replica (V3, V4)."""
    version = version_of(record)
    if state.record is not None and not state.is_corrupt and not outranks(record, state.record):
        return Verdict.VOTED if record == state.record else Verdict.PREEMPTED
    if write_stamp(version) <= state.lowest:
        return Verdict.TOO_OLD
    if state.promise is not None and state.promise.forbids_merge(version):
        return Verdict.PREEMPTED
    if state.is_corrupt and write_stamp(version) <= state.corruption:
        return Verdict.CORRUPT
    return Verdict.VOTED


def _is_too_far(state: Held, number: int, bounds: Bounds) -> bool:
    known = round_of(state.version) if not state.is_corrupt else 0
    known = max(known, state.promise.round if state.promise else 0)
    # All replicas refuse rounds up to these, so the next one can only be above them.
    known = max(known, stamp_milliseconds(max(state.horizon, state.floor)))
    return stamp_at(number) > bounds.latest and number > known + _MARGIN_MS
