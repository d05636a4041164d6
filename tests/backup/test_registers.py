"""The restore of registers: what is done with one, and with those of real clusters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dstash.backup.registers import Step, as_read, changes, choose, unchanged
from dstash.backup.restore_rules import Fate, Rule, as_of_backup, into_other, into_same
from dstash.store.record import Record, build_record
from dstash.store.register.header import Header, pack_header
from dstash.types import NEVER, RecordFlag
from dstash.version import WRITER_BYTES, pack, stamp_at
from dstash.wire.registers import ANY, MISSING, NEVER_EXPIRES, ChangeKind
from tests.backup.conftest import Cluster

NOW = 1_000_000
SAVED_AT, BEFORE, AFTER = stamp_at(50), stamp_at(40), stamp_at(60)


def register(changed: int, value: bytes = b"\x01", expiry: int = NEVER) -> Record:
    """Return a register as reads return it; without value, a tombstone."""
    flags = RecordFlag.REGISTER | (0 if value else RecordFlag.TOMBSTONE)
    return Record(pack(changed, bytes(WRITER_BYTES)), int(flags), expiry, value)


SAVED, GONE = register(SAVED_AT), register(SAVED_AT, b"")
PUT = Step(Fate.STORED, ChangeKind.PUT, NEVER_EXPIRES, MISSING, b"\x01")


def test_saved_register_is_read_with_its_value_and_its_version_for_users() -> None:
    header = pack_header(Header(SAVED_AT, fence=7))
    stored = Record(pack(AFTER, b"home"), int(RecordFlag.REGISTER), 5, header + b"\x01")
    assert as_read(build_record(b"@i", b"k", stored)) == SAVED._replace(expiry=5)


@pytest.mark.parametrize(
    ("rule", "saved", "stored", "step"),
    [
        (into_other, SAVED, None, PUT),
        (into_other, SAVED, register(BEFORE), PUT._replace(expected=BEFORE)),
        (into_other, SAVED, register(AFTER, b"\x02"), Step(Fate.NEWER_KEPT)),
        (into_other, SAVED, SAVED, Step(Fate.UNCHANGED)),
        (into_other, GONE, None, Step(Fate.UNCHANGED)),
        (
            into_other,
            GONE,
            register(BEFORE),
            Step(Fate.DELETED, ChangeKind.DELETE, expected=BEFORE),
        ),
        (into_other, SAVED._replace(expiry=NOW), None, Step(Fate.EXPIRED)),
        (
            into_other,
            SAVED._replace(expiry=NOW + 1500),
            None,
            PUT._replace(ttl=2000),
        ),
        (into_same, SAVED, None, Step(Fate.DELETED_KEPT)),
        (into_same, SAVED, register(BEFORE), PUT._replace(expected=BEFORE)),
        (into_same, SAVED, register(AFTER), Step(Fate.UNCHANGED)),
        (as_of_backup, SAVED, None, PUT._replace(expected=ANY)),
        (as_of_backup, SAVED, register(AFTER, b"\x02"), PUT._replace(expected=ANY)),
        (as_of_backup, SAVED, register(AFTER), Step(Fate.UNCHANGED)),
        (as_of_backup, GONE, register(AFTER), Step(Fate.DELETED, ChangeKind.DELETE)),
    ],
)
def test_step_depends_on_the_register_in_the_cluster(
    rule: Rule, saved: Record, stored: Record | None, step: Step
) -> None:
    assert choose(saved, stored, rule, NOW) == step


def test_registers_with_the_same_time_to_live_are_changed_together() -> None:
    steps = {b"a": PUT, b"b": PUT._replace(expected=BEFORE), b"c": PUT._replace(ttl=2000)}
    steps[b"d"] = Step(Fate.UNCHANGED)
    forever, brief = changes(steps)
    assert [key for key, _, _ in forever.items] == [b"a", b"b"]
    assert forever.wanted.expected == {b"a": MISSING, b"b": BEFORE}
    assert brief.wanted.ttl == 2000
    assert unchanged(steps) == Counter({Fate.UNCHANGED: 1})


def test_registers_are_restored_into_another_cluster(source: Cluster, target: Cluster) -> None:
    client, other, index = source.client, target.client, "@registers"
    client.batch_add(index, {f"k{number}": number for number in range(50)})
    client.put(index, "brief", 1, ttl=3600)
    client.put(index, "gone", 1)
    client.delete(index, "gone")
    source.backup("save", "registers")
    assert target.backup("restore", "registers", "--index", index)["stored"] == 51
    assert other.batch_lookup(index, ["k7", "brief", "gone"]) == {"k7": 7, "brief": 1}
    left: Any = other.ttl(index, "brief")
    assert 3500 < left <= 3601
    # A version of this cluster, so that conditions and counters work.
    entry: Any = other.lookup_entry(index, "k7")
    assert other.compare_and_set(index, "k7", 8, entry.version) > entry.version
    again = target.backup("restore", "registers", "--index", index)
    assert (again["stored"], again["newer_kept"]) == (0, 2)  # k7, and the rounded time to live
    assert other.lookup(index, "k7") == 8
    # In its own cluster, deleted keys stay deleted unless the restore is as of the backup.
    client.delete(index, "k1")
    client.put(index, "k2", "newer")
    same = source.backup("restore", "registers", "--index", index)
    assert (same["stored"], same["deleted_kept"], same["newer_kept"]) == (0, 1, 1)
    source.backup("restore", "registers", "--index", index, "--as-of-backup")
    assert client.batch_lookup(index, ["k1", "k2"]) == {"k1": 1, "k2": 2}
