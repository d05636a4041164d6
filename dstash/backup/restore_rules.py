"""What a restore does about one record, given what the cluster has: pure rules.

The rules only say what is worth sending, and how it is counted. That nothing newer is overwritten
does not rest on them but on the replicas, which merge by version: whatever is written while a
restore runs wins, whenever it is written.

- Into the **same cluster**, a record comes back under the version it had. What is not there any
  more was deleted, if its version is not above the horizon of its partition: the replicas refuse
  it then (see ``cluster/burying.py``). That holds for every partition and needs no question.
- Into **another cluster**, horizons say nothing about the record. It keeps the stamp and writer of
  its version, so that it still loses to all that is newer, and counts as touched now. The flag
  ``RESTORED`` has horizons judge it by that.
- **As of the backup**, it is written as a new write, which wins over all that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from dstash.store.record import Record
from dstash.types import NEVER, RecordFlag, Word
from dstash.version import Stamp, Version, newest_stamp, unpack, with_touch

#: What a version is without its last touch: which write it was.
_WRITE: Final = slice(0, 12)


class Fate(Word):
    """What became of one record of a backup."""

    STORED = "stored"
    DELETED = "deleted"
    UNCHANGED = "unchanged"
    NEWER_KEPT = "newer_kept"
    DELETED_KEPT = "deleted_kept"
    EXPIRED = "expired"
    CORRUPT = "corrupt"


class Choice(NamedTuple):
    """What to count, and what to write: None for nothing."""

    fate: Fate
    record: Record | None = None


#: From the record of the backup, the newest in the cluster (None: none), the time (milliseconds
#: since 1970) and a fresh version, to a choice.
Rule = Callable[[Record, Record | None, int, Version], Choice]


def into_same(saved: Record, there: Record | None, now: int, fresh: Version) -> Choice:
    """Choose for the cluster that the backup is of."""
    if there is not None and there >= saved:  # in the order of ``outranks``
        return _kept(saved, there, now)
    return Choice(_fate(saved, now), saved)


def into_other(saved: Record, there: Record | None, now: int, fresh: Version) -> Choice:
    """Choose for a cluster that the backup is not of."""
    if there is not None and there.version[_WRITE] >= saved.version[_WRITE]:
        return _kept(saved, there, now)
    written = saved if saved.is_live(now) else _tombstone(saved.version)
    version = with_touch(saved.version, max(newest_stamp(fresh), _touched(saved.version)))
    flags = written.flags | RecordFlag.RESTORED
    return Choice(_fate(saved, now), written._replace(version=version, flags=flags))


def as_of_backup(saved: Record, there: Record | None, now: int, fresh: Version) -> Choice:
    """Choose so that the cluster has what the backup has; what the backup lacks stays."""
    is_there = there is not None and there.is_live(now)
    if saved.is_tombstone:
        gone = Choice(Fate.DELETED, _tombstone(fresh))
        return gone if is_there else Choice(Fate.UNCHANGED)
    if not saved.is_live(now):
        return Choice(Fate.EXPIRED)
    if there is not None and is_there and _content(there) == _content(saved):
        return Choice(Fate.UNCHANGED)
    return Choice(Fate.STORED, saved._replace(version=fresh))


def _kept(saved: Record, there: Record, now: int) -> Choice:
    is_same = there.version[_WRITE] == saved.version[_WRITE] and there.expiry == saved.expiry
    if is_same or not (saved.is_live(now) or there.is_live(now)):
        return Choice(Fate.UNCHANGED)
    return Choice(Fate.NEWER_KEPT if there.is_live(now) else Fate.DELETED_KEPT)


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
