"""Drops: the records of an index, or of a prefix of its keys, removed up to a stamp.

A drop is an entry of the topology. So all members take it with one compare-and-set, a peer knows it
before it serves a request of its epoch, and a member that was away learns it before it takes part
again. A record that it covers counts as absent on every replica, whether it is on disk or not.

An entry ends when every member has removed the covered records and the horizon of every partition
has passed its stamp: from then on the horizons keep such records out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from dstash.errors import ChangeConflict, ProtocolError
from dstash.store.record import horizon_stamp, is_sound
from dstash.version import MAX_STAMP, Stamp

#: The name of this feature in ``Member.features``.
FEATURE: Final = "drop"


@dataclass(frozen=True, slots=True)
class Drop:
    """One request to drop records.

    ``prefix`` is the prefix of the encoded keys as hexadecimal text, empty for all keys. Records
    written up to ``stamp`` are dropped; it may be lowered once the records are removed. ``number``
    is the epoch of the request. ``swept`` means that every member has removed the records from its
    disk.
    """

    index: str
    prefix: str
    stamp: Stamp
    number: int
    swept: bool = False

    def includes(self, index: str, prefix: str) -> bool:
        """Whether all keys of ``index`` that begin with ``prefix`` are in this drop."""
        return self.index == index and prefix.startswith(self.prefix)

    def fulfils(self, other: Drop) -> bool:
        """Whether all that ``other`` drops is dropped by this: it is the same, or took its place.

        Only index, prefix and stamp show that. In another history, a drop of the same number may
        be an earlier one.
        """
        return self.stamp >= other.stamp and self.includes(other.index, other.prefix)

    @property
    def identity(self) -> tuple[str, str, Stamp, int]:
        """What distinguishes it from all others: two histories may use one epoch."""
        return self.index, self.prefix, self.stamp, self.number


class Floors:
    """Which records are dropped; immutable, so any thread may use it."""

    def __init__(self, drops: Iterable[Drop] = ()) -> None:
        self._by_index: dict[bytes, list[tuple[bytes, Stamp]]] = {}
        #: The latest stamp of any drop; 0 without drops.
        self.newest: Stamp = 0
        for drop in drops:
            entry = bytes.fromhex(drop.prefix), drop.stamp
            self._by_index.setdefault(drop.index.encode(), []).append(entry)
            self.newest = max(self.newest, drop.stamp)

    def __bool__(self) -> bool:
        return bool(self._by_index)

    def of_index(self, index: str) -> Stamp:
        """Return the stamp that a new write to an index must exceed; 0 for any.

        It is the latest of all prefixes: a write that is stamped later than needed does no harm.
        """
        return max((stamp for _, stamp in self._by_index.get(index.encode(), ())), default=0)

    def of_key(self, storage_key: bytes) -> Stamp:
        """Return the stamp up to which records under a storage key are dropped; 0 for none."""
        end = 3 + storage_key[2]
        entries = self._by_index.get(storage_key[3:end])
        if entries is None:
            return 0
        stamps = [stamp for prefix, stamp in entries if storage_key.startswith(prefix, end)]
        return max(stamps, default=0)

    def covers(self, storage_key: bytes, record: bytes) -> bool:
        """Whether a record is dropped. A corrupt one is not: it may be a later one."""
        floor = self.of_key(storage_key)
        return bool(floor) and is_sound(storage_key, record) and horizon_stamp(record) <= floor

    def prefixes(self) -> list[bytes]:
        """Return the prefixes of all storage keys that may be dropped, without the partition."""
        return [
            bytes((len(index),)) + index + prefix
            for index, entries in self._by_index.items()
            for prefix, _ in entries
        ]


def lowered(drops: Iterable[Drop], ceiling: Stamp) -> tuple[Drop, ...]:
    """Return drops with stamps of at most ``ceiling``.

    Raises:
        ChangeConflict: records above it are still being removed, and would come back.
    """
    changed = []
    for drop in drops:
        if drop.stamp > ceiling and not drop.swept:
            raise ChangeConflict(
                f"index {drop.index!r} is still being dropped; lower floors when dstash status "
                "shows that its records are removed"
            )
        changed.append(replace(drop, stamp=min(drop.stamp, ceiling)))
    return tuple(changed)


def decoded(raw: Any) -> Drop:
    """Return a drop from its JSON form; ``ProtocolError`` if it is malformed."""
    drop = Drop(
        str(raw["index"]),
        bytes.fromhex(raw["prefix"]).hex(),
        int(raw["stamp"]),
        int(raw["number"]),
        bool(raw.get("swept", False)),
    )
    if not 0 <= drop.stamp <= MAX_STAMP:
        raise ProtocolError(f"topology has a drop with the stamp {drop.stamp}")
    return drop
