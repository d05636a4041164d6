"""The restore of registers: keys of indexes whose names begin with ``@``.

A register is written by an ordinary operation on its key, with the version in the cluster as its
condition, because its own version is a ballot of the cluster that was saved. It gets a new version,
and the ids of requests are not restored.

A key that does not exist in the same cluster was deleted after the backup, or is lost; a tombstone
does not last, so a restore cannot distinguish them and leaves the key as it is. A restore as of the
backup writes it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from dstash.backup.restore_rules import Fate, Rule, as_of_backup, into_same
from dstash.client.operations.batching import Item
from dstash.client.operations.registers.wanted import Wanted
from dstash.store.record import Record, open_record
from dstash.store.register.header import split
from dstash.types import NEVER, RecordFlag
from dstash.version import WRITER_BYTES, Stamp, pack, write_stamp
from dstash.wire.registers import ANY, MISSING, NEVER_EXPIRES, ChangeKind

#: Times to live are rounded up to it, so that records with nearly the same expiry are written
#: together; in milliseconds.
_TTL_STEP: Final = 1000


class Step(NamedTuple):
    """What to do with one register: a fate to count, and a change to make, if any."""

    fate: Fate
    kind: ChangeKind | None = None
    ttl: int = NEVER_EXPIRES
    expected: Stamp = ANY
    value: bytes = b""


class Change(NamedTuple):
    """A change of many registers, and the fate of each key that is changed."""

    items: Sequence[Item]
    wanted: Wanted
    fates: Mapping[bytes, Fate]


def as_read(record: bytes) -> Record:
    """Return a saved register as reads return it: its value, with the version that users see."""
    saved = open_record(record)
    if not saved.flags & RecordFlag.REGISTER:  # from before the name was reserved
        return saved
    header, value = split(saved.payload)
    version = pack(header.changed, bytes(WRITER_BYTES))
    return saved._replace(version=version, payload=value)


def choose(saved: Record, stored: Record | None, rule: Rule, now: int) -> Step:
    """Choose what to do with a register.

    Args:
        saved: as ``as_read`` returned it.
        stored: the register in the cluster; None if it does not exist.
        rule: of the restore.
        now: milliseconds since 1970.
    """
    expected = MISSING if stored is None else write_stamp(stored.version)
    if rule is as_of_backup:
        expected = ANY
        if stored is not None and _content(stored) == _content(saved):
            return Step(Fate.UNCHANGED)
    elif stored is None and rule is into_same and not saved.is_tombstone:
        return Step(Fate.DELETED_KEPT)
    elif stored is not None and stored.version >= saved.version:
        is_same = stored.version == saved.version or _content(stored) == _content(saved)
        return Step(Fate.UNCHANGED if is_same else Fate.NEWER_KEPT)
    if saved.is_tombstone:
        if stored is None:
            return Step(Fate.UNCHANGED)
        return Step(Fate.DELETED, ChangeKind.DELETE, expected=expected)
    if not saved.is_live(now):
        return Step(Fate.EXPIRED)
    left = NEVER_EXPIRES
    if saved.expiry != NEVER:
        left = -(-(saved.expiry - now) // _TTL_STEP) * _TTL_STEP
    return Step(Fate.STORED, ChangeKind.PUT, left, expected, saved.payload)


def changes(steps: Mapping[bytes, Step]) -> list[Change]:
    """Return the changes to make, by encoded key; keys that need none are left out."""
    groups: dict[tuple[ChangeKind, int], dict[bytes, Step]] = defaultdict(dict)
    for key, step in steps.items():
        if step.kind is not None:
            groups[step.kind, step.ttl][key] = step
    return [
        Change(
            [(key, key, step.value) for key, step in members.items()],
            Wanted(kind, ttl, expected={key: step.expected for key, step in members.items()}),
            {key: step.fate for key, step in members.items()},
        )
        for (kind, ttl), members in groups.items()
    ]


def unchanged(steps: Mapping[bytes, Step]) -> Counter[Fate]:
    """Return the number of keys that need no change, per fate."""
    return Counter(step.fate for step in steps.values() if step.kind is None)


def _content(record: Record) -> tuple[int, bytes]:
    return record.expiry, record.payload
