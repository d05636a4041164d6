"""What a commit checks its writes against, and what is left of a write after the checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from dstash.cluster.topology.drops import Floors
from dstash.cluster.topology.life import Life
from dstash.errors import ClockSkew, DStashError, LimitError, Misrouted, ProtocolError
from dstash.limits import MAX_KEY_BYTES
from dstash.store.interface import Write
from dstash.store.record import partition_of, split_storage_key
from dstash.store.register.voter import Bounds
from dstash.types import RecordFlag
from dstash.version import MAX_STAMP, Stamp, Version, newest_stamp, stamp_milliseconds

#: A plain number: arithmetic with flags takes longer than to check the record.
TOMBSTONE: Final = RecordFlag.TOMBSTONE.value

#: Items of a request that are not stored: [place, code of the error, text] of each.
Rejected = list[list[Any]]


_NO_PROMISES: Final[Mapping[int, Stamp]] = {}
_NONE_CONTESTED: Final[Mapping[Version, Stamp]] = {}


class Rules(NamedTuple):
    """The rules that a commit checks its writes against.

    ``present``: the time (milliseconds since 1970) that versions are compared with; a version is
    at most ``max_skew`` ahead of it. It is not ``now``, because this peer's clock may be wrong.
    Stamps above ``latest`` are certainly from the future: they are refused, and a stored record
    with such a stamp loses to writes of clients above the stamp that ``acked`` has for its version:
    see ``ClusterClock.acked_by_contested``. Between the two, this peer cannot decide yet.
    ``floor``: the highest horizon. Writes of clients up to it are refused, even if they arrived
    before it was set. ``promises`` (by partition): repairs stamped up to this must wait.
    ``horizons`` (by partition): tombstones up to this may have been dropped. See
    ``cluster/replication/tombstone_gc.py``. ``owned``: the partitions of this peer. ``has_room``:
    false when only deletes and repairs may be written; ``has_spare``: false when only deletes may.
    ``upper_bound``: the highest stamp that a corrupt record may have had. ``floors``: which
    records were dropped with their index. ``bounds``: the limits of votes on registers.
    ``life``: of the store.
    Client writes need neither promises nor horizons.
    ``resting``: partitions whose registers rest.
    ``lacks_data``: whether this peer does not know which keys existed.
    """

    now: int
    present: int
    max_skew: int
    floor: Stamp
    promises: Mapping[int, Stamp] = _NO_PROMISES
    horizons: Sequence[Stamp] = ()
    owned: frozenset[int] = frozenset()
    has_room: bool = True
    has_spare: bool = True
    upper_bound: Stamp = MAX_STAMP
    latest: Stamp = MAX_STAMP
    acked: Mapping[Version, Stamp] = _NONE_CONTESTED
    floors: Floors = Floors()
    bounds: Bounds | None = None
    life: Life = Life(0, 0, 0)
    resting: frozenset[int] = frozenset()
    lacks_data: bool = False


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
        return not (
            write.entries
            or write.drops
            or write.marks
            or write.replacements
            or write.votes
            or write.resting
            or write.earlier
        )


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


def bad_keys(keys: Sequence[bytes]) -> Rejected:
    """Return the keys of a wrong length, as rejected items."""
    if not keys or (min(map(len, keys)) >= 1 and max(map(len, keys)) <= MAX_KEY_BYTES):
        return []
    text = f"a key must have 1 to {MAX_KEY_BYTES} bytes"
    return [
        [place, LimitError.code, f"{text}, not {len(key)}"]
        for place, key in enumerate(keys)
        if not 1 <= len(key) <= MAX_KEY_BYTES
    ]


def check_storage_key(storage_key: bytes, owned: frozenset[int]) -> None:
    """Refuse a storage key that a peer sent and that is malformed, or not held here.

    Raises:
        Misrouted: this peer holds no replica of its partition.
        ProtocolError: it is malformed.
    """
    if len(storage_key) < 4 or len(storage_key) < 4 + storage_key[2]:
        raise ProtocolError("a storage key is too short")
    partition, _, key = split_storage_key(storage_key)
    if partition != partition_of(key):
        raise ProtocolError("a storage key stands in the wrong partition")
    if partition not in owned:
        raise Misrouted(f"this peer holds no replica of partition {partition}")
