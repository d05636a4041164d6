"""The rules of a restore for one record, alone and with replicas in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dstash.backup.restore_rules import (
    Choice,
    Fate,
    Rule,
    as_of_backup,
    into_other,
    into_same,
)
from dstash.client.session import Session
from dstash.store.record import Record, open_record
from dstash.types import NEVER, RecordFlag
from dstash.version import ZERO, pack, stamp_at, with_touch
from dstash.wire.envelope import Envelope
from dstash.wire.messages import Apply
from tests.backup.memory import Caller

NOW = 1_000_000
FRESH = pack(stamp_at(NOW), b"mine")


def version(moment: int) -> bytes:
    return pack(stamp_at(moment), b"them")


def live(moment: int, payload: bytes = b"\x01", expiry: int = NEVER) -> Record:
    return Record(version(moment), 0, expiry, payload)


def dead(moment: int) -> Record:
    return Record(version(moment), RecordFlag.TOMBSTONE, NEVER, b"")


OLD, SAVED, NEW = live(1), live(5), live(9)


@pytest.mark.parametrize("rule", [into_same, into_other])
@pytest.mark.parametrize(
    ("saved", "there", "fate", "is_written"),
    [
        (SAVED, None, Fate.STORED, True),
        (SAVED, OLD, Fate.STORED, True),
        (SAVED, dead(1), Fate.STORED, True),
        (SAVED, SAVED, Fate.UNCHANGED, False),
        (SAVED, NEW, Fate.NEWER_KEPT, False),
        (SAVED, dead(9), Fate.DELETED_KEPT, False),
        (SAVED, live(9, expiry=NOW), Fate.DELETED_KEPT, False),
        (dead(5), OLD, Fate.DELETED, True),
        (dead(5), NEW, Fate.NEWER_KEPT, False),
        (dead(5), dead(9), Fate.UNCHANGED, False),
        (live(5, expiry=NOW), OLD, Fate.EXPIRED, True),
        (live(5, expiry=NOW), NEW, Fate.NEWER_KEPT, False),
    ],
)
def test_rule_decides_fate_of_saved_record(
    rule: Rule, saved: Record, there: Record | None, fate: Fate, is_written: bool
) -> None:
    choice = rule(saved, there, NOW, FRESH)
    assert choice.fate is fate
    assert (choice.record is not None) is is_written


def test_restore_into_same_cluster_keeps_version() -> None:
    assert into_same(SAVED, OLD, NOW, FRESH) == Choice(Fate.STORED, SAVED)


def test_restore_into_other_cluster_touches_record_and_loses_to_later_write() -> None:
    record = into_other(SAVED, OLD, NOW, FRESH).record
    touched = with_touch(SAVED.version, stamp_at(NOW))
    assert record == SAVED._replace(version=touched, flags=RecordFlag.RESTORED)
    assert record.version < live(6).version
    again = into_other(SAVED, record, NOW + 1, FRESH)
    assert again == Choice(Fate.UNCHANGED)
    later = SAVED._replace(version=with_touch(SAVED.version, stamp_at(2 * NOW)))
    restored = into_other(later, None, NOW, FRESH).record
    assert restored == later._replace(flags=RecordFlag.RESTORED)  # never to an earlier version


def test_restore_into_other_cluster_writes_expired_record_as_tombstone() -> None:
    record = into_other(live(5, b"large", NOW), OLD, NOW, FRESH).record
    assert record is not None
    assert (record.is_tombstone, record.payload) == (True, b"")


@pytest.mark.parametrize(
    ("saved", "there", "expected"),
    [
        (SAVED, None, Choice(Fate.STORED, SAVED._replace(version=FRESH))),
        (SAVED, dead(9), Choice(Fate.STORED, SAVED._replace(version=FRESH))),
        (SAVED, live(9, b"\x02"), Choice(Fate.STORED, SAVED._replace(version=FRESH))),
        (SAVED, live(9, expiry=2 * NOW), Choice(Fate.STORED, SAVED._replace(version=FRESH))),
        (SAVED, NEW, Choice(Fate.UNCHANGED)),
        (dead(5), NEW, Choice(Fate.DELETED, Record(FRESH, RecordFlag.TOMBSTONE, NEVER, b""))),
        (dead(5), None, Choice(Fate.UNCHANGED)),
        (live(5, expiry=NOW), NEW, Choice(Fate.EXPIRED)),
    ],
)
def test_restore_as_of_backup_overwrites_newer_record(
    saved: Record, there: Record | None, expected: Choice
) -> None:
    assert as_of_backup(saved, there, NOW, FRESH) == expected


class TestReplicas:
    """The rules against real replicas, whose horizons pass over the saved versions."""

    def saved(self) -> tuple[Caller, list[tuple[bytes, bytes]]]:
        """Return a cluster, and its records before a key was deleted and another changed."""
        joined = Caller()
        joined.put({"gone": 1, "changed": 1, "same": 1}, "all")
        entries = self.entries(joined, "gone", "changed", "same")
        joined.now += 10
        joined.delete("gone", level="all")
        joined.put({"changed": 2}, "all")
        return joined, entries

    def entries(self, joined: Caller, *keys: str) -> list[tuple[bytes, bytes]]:
        records = [joined.record("a", key) for key in keys]
        return [(key.encode(), record) for key, record in zip(keys, records, strict=True) if record]

    def restore(self, joined: Caller, entries: Any, rule: Rule) -> Counter[Fate]:
        return joined.cluster.restore(b"i", entries, rule)

    def test_restore_into_same_cluster_does_not_revive_collected_delete(self) -> None:
        joined, entries = self.saved()
        kept = Counter({Fate.DELETED_KEPT: 1, Fate.NEWER_KEPT: 1, Fate.UNCHANGED: 1})
        assert self.restore(joined, entries, into_same) == kept
        joined.drop_tombstones()
        assert joined.record("a", "gone") is None
        assert self.restore(joined, entries, into_same) == kept
        assert joined.lookup("gone", "changed", "same") == {"changed": 2, "same": 1}

    def test_restore_into_same_cluster_returns_lost_record_with_its_version(self) -> None:
        joined, entries = self.saved()
        for peer in "abc":
            joined.forget(peer, "same")
        assert self.restore(joined, entries, into_same)[Fate.STORED] == 1
        assert (b"same", joined.record("a", "same")) in entries

    def test_restore_into_other_cluster_writes_records_below_horizon(self) -> None:
        _, entries = self.saved()
        other = Caller()
        other.put({"own": 1}, "all")
        other.delete("own", level="all")
        other.drop_tombstones()
        assert min(other.peers["a"].local_partitions.horizons[i] for i in range(4096)) == 0
        other.now += 10
        horizon = max(other.peers["a"].local_partitions.horizons)
        for core in other.peers.values():
            core.local_partitions.advance(range(4096), horizon)
        fates = self.restore(other, entries, into_other)
        assert fates == Counter({Fate.STORED: 3})
        assert other.lookup("gone", "changed", "same") == {"gone": 1, "changed": 1, "same": 1}
        assert self.restore(other, entries, into_other) == Counter({Fate.UNCHANGED: 3})

    def test_restore_accepts_records_that_expire_by_the_settings_of_their_index(self) -> None:
        _, entries = self.saved()
        other = Caller()
        other.now += 3000
        other.settle()
        other.set_index(max_ttl=1)

        def slow(peer: str, envelope: Envelope) -> Envelope:
            other.now += 5 * isinstance(envelope.message, Apply)
            return envelope

        other.tamper = slow
        assert self.restore(other, entries, into_other) == Counter({Fate.STORED: 3})
        assert other.lookup("gone", "changed", "same") == {}

    def test_restore_as_of_backup_returns_saved_state(self) -> None:
        joined, entries = self.saved()
        joined.drop_tombstones()
        fates = self.restore(joined, entries, as_of_backup)
        assert fates == Counter({Fate.STORED: 2, Fate.UNCHANGED: 1})
        assert joined.lookup("gone", "changed", "same") == {"gone": 1, "changed": 1, "same": 1}

    def test_restore_continues_past_corrupt_record(self) -> None:
        joined, entries = self.saved()
        joined.drop_tombstones()
        for peer in "abc":
            joined.corruption(peer, "same")
        fates = self.restore(joined, entries, into_same)
        assert fates == Counter({Fate.CORRUPT: 1, Fate.DELETED_KEPT: 1, Fate.NEWER_KEPT: 1})
        assert self.restore(joined, entries[2:], as_of_backup) == Counter({Fate.STORED: 1})
        assert joined.lookup("same") == {"same": 1}

    def test_restore_versions_start_above_versions_of_fast_client(self) -> None:
        joined, entries = self.saved()
        joined.session.observe(stamp_at(joined.now + 400))
        joined.put({"changed": 3}, "all")
        joined.session = Session(lambda: joined.now, random_bytes=bytes)
        joined.session.install(joined.topology.encode(), list("abc"))
        record = joined.record("a", "changed")
        assert record is not None
        before = open_record(record).version
        self.restore(joined, entries, as_of_backup)
        record = joined.record("a", "changed")
        assert record is not None
        assert open_record(record).version > before > ZERO
