"""The rules of a restore: what to do with one record, given the record in the cluster.

The rules only decide what to send and how to count it. They do not protect newer records: the
replicas do, because they merge by version. A write during the restore always wins.

- Into the **same cluster**, a record is restored with its version. A record that is missing and has
  a version at or below the horizon of its partition was deleted, and the replicas refuse it (see
  ``cluster/replication/tombstone_gc.py``).
- Into **another cluster**, horizons do not apply to the record. It keeps the stamp and writer of
  its version, so that it loses to every newer record, and is touched now. With the flag
  ``RESTORED``, horizons use that touch.
- **As of the backup**, it is written as a new write, which wins over the record in the cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from dstash.store.record import Record
from dstash.types import NEVER, RecordFlag, Word
from dstash.version import Stamp, Version, newest_stamp, unpack, with_touch

#: The part of a version that identifies the write, without its last touch.
_WRITE: Final = slice(0, 12)


class Fate(Word):
    """The result for one record of a backup."""

    STORED = "stored"
    DELETED = "deleted"
    UNCHANGED = "unchanged"
    NEWER_KEPT = "newer_kept"
    DELETED_KEPT = "deleted_kept"
    EXPIRED = "expired"
    CORRUPT = "corrupt"


class Choice(NamedTuple):
    """The fate to count, and the record to write, if any."""

    fate: Fate
    record: Record | None = None


#: Returns a choice for the record of the backup, the newest in the cluster (or None), the time
#: (milliseconds since 1970) and a new version.
Rule = Callable[[Record, Record | None, int, Version], Choice]


def into_same(saved: Record, stored: Record | None, now: int, fresh: Version) -> Choice:
    """Choose for the cluster that was backed up."""
    if stored is not None and stored >= saved:  # in the order of ``outranks``
        return _kept(saved, stored, now)
    return Choice(_fate(saved, now), saved)


def into_other(saved: Record, stored: Record | None, now: int, fresh: Version) -> Choice:
    """Choose for another cluster."""
    if stored is not None and stored.version[_WRITE] >= saved.version[_WRITE]:
        return _kept(saved, stored, now)
    written = saved if saved.is_live(now) else _tombstone(saved.version)
    version = with_touch(saved.version, max(newest_stamp(fresh), _touched(saved.version)))
    flags = written.flags | RecordFlag.RESTORED
    return Choice(_fate(saved, now), written._replace(version=version, flags=flags))


def as_of_backup(saved: Record, stored: Record | None, now: int, fresh: Version) -> Choice:
    """Choose so that the cluster has every record of the backup; other records stay."""
    is_there = stored is not None and stored.is_live(now)
    if saved.is_tombstone:
        gone = Choice(Fate.DELETED, _tombstone(fresh))
        return gone if is_there else Choice(Fate.UNCHANGED)
    if not saved.is_live(now):
        return Choice(Fate.EXPIRED)
    if stored is not None and is_there and _content(stored) == _content(saved):
        return Choice(Fate.UNCHANGED)
    return Choice(Fate.STORED, saved._replace(version=fresh))


def _kept(saved: Record, stored: Record, now: int) -> Choice:
    is_same = stored.version[_WRITE] == saved.version[_WRITE] and stored.expiry == saved.expiry
    if is_same or not (saved.is_live(now) or stored.is_live(now)):
        return Choice(Fate.UNCHANGED)
    return Choice(Fate.NEWER_KEPT if stored.is_live(now) else Fate.DELETED_KEPT)


def _fate(saved: Record, now: int) -> Fate:
    if saved.is_tombstone:
        return Fate.DELETED
    return Fate.STORED if saved.is_live(now) else Fate.EXPIRED


def _tombstone(version: Version) -> Record:
    return Record(version, RecordFlag.TOMBSTONE, NEVER, b"")


def _touched(version: Version) -> Stamp:
    return unpack(version)[2]


def _content(record: Record) -> tuple[int, bytes]:
    return record.expiry, record.payload
