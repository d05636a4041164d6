"""Copying one piece of a cluster in memory, in every state of its replicas."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from dstash.errors import CorruptRecord, ProtocolError, Unavailable
from dstash.store.record import open_record, partition_of
from dstash.version import stamp_at
from dstash.wire.envelope import Envelope
from dstash.wire.replication import CopyRequest, DigestsReply
from tests.backup.memory import PARTITIONS, Caller

#: Keys of the copied piece, several in each partition.
KEYS = list(
    itertools.islice(
        (name for name in map(str, itertools.count()) if partition_of(name.encode()) in PARTITIONS),
        60,
    )
)
A, B, *REST = KEYS


@pytest.fixture
def joined() -> Caller:
    return Caller()


def values(joined: Caller, found: dict[bytes, bytes]) -> dict[str, bytes | None]:
    """Return the payloads by key, None for a tombstone."""
    records = {
        key: open_record(found[joined.place(key)]) for key in KEYS if _is_in(joined, key, found)
    }
    return {key: None if record.is_tombstone else record.payload for key, record in records.items()}


def _is_in(joined: Caller, key: str, found: dict[bytes, bytes]) -> bool:
    return joined.place(key) in found


def test_copy_of_equal_replicas_has_each_record_and_tombstone_once(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1) | {"elsewhere": 1}, "all")
    joined.delete(A, level="all")
    joined.asked.clear()
    moving, entries = joined.saved()
    assert moving == 0
    assert values(joined, dict(entries)) == {A: None, B: b"\x01"} | dict.fromkeys(REST, b"\x01")
    assert len(entries) == len(KEYS)
    kinds = Counter(type(envelope.message).__name__ for _, envelope in joined.asked)
    assert kinds["CopyRequest"] <= 3  # one for each peer that sends records


def test_copy_includes_write_missed_by_one_replica(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    for peer in "abc":
        # Each write is on two of three replicas, so any two replicas have all of them.
        joined.silent = {peer}
        joined.put({KEYS["abc".index(peer)]: peer})
        joined.delete(KEYS[3 + "abc".index(peer)])
        joined.silent = set()
    found = values(joined, joined.save())
    assert [found[key] for key in KEYS[:7]] == [
        b"\xa1a",
        b"\xa1b",
        b"\xa1c",
        None,
        None,
        None,
        b"\x01",
    ]


def test_copy_replaces_corrupt_record_from_another_replica(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    for peer in "ab":
        joined.corruption(peer, KEYS["ab".index(peer)])
        joined.peers[peer].local_partitions.changed(PARTITIONS, joined.now)
    assert values(joined, joined.save()) == dict.fromkeys(KEYS, b"\x01")


def test_copy_fails_when_record_is_corrupt_on_all_replicas(joined: Caller) -> None:
    joined.put({A: 1}, "all")
    for peer in "abc":
        joined.corruption(peer, A)
        joined.peers[peer].local_partitions.changed(PARTITIONS, joined.now)
    with pytest.raises(CorruptRecord, match="repaired first"):
        joined.save()


def test_copy_repeats_partition_changed_meanwhile(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    copies = itertools.count()

    def write_before(peer: str, envelope: Envelope) -> Envelope:
        if isinstance(envelope.message, CopyRequest) and next(copies) == 0:
            entry, record = joined.place(A), joined.record(peer, B)
            assert record is not None
            for store in joined.stores.values():  # as if a write came in between
                store.records.pop(entry)
            for core in joined.peers.values():
                core.local_partitions.changed(PARTITIONS, joined.now)
        return envelope

    joined.tamper = write_before
    moving, entries = joined.saved()
    assert moving == 0
    assert joined.place(A) not in dict(entries)
    assert len(entries) == len(KEYS) - 1


def test_copy_merges_partition_that_keeps_changing(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    stored = dict(joined.stores["a"].records)

    def come_and_go(peer: str, envelope: Envelope) -> Envelope:
        records = joined.stores[peer].records
        if isinstance(envelope.message, CopyRequest):
            records.pop(joined.place(A), None)
        else:
            records[joined.place(A)] = stored[joined.place(A)]
        joined.peers[peer].local_partitions.changed(PARTITIONS, joined.now)
        return envelope

    joined.tamper = come_and_go
    moving, entries = joined.saved()
    assert moving == 1
    assert len(entries) == len({key for key, _ in entries}) == len(KEYS) - 1


def test_copy_omits_dropped_tombstones(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    joined.delete(A, level="all")
    joined.drop_tombstones()
    assert values(joined, joined.save()) == dict.fromkeys([B, *REST], b"\x01")


def test_copy_ignores_tombstones_below_horizon_in_digest(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    joined.delete(A, level="all")
    joined.now += 10
    for core in joined.peers.values():
        core.local_partitions.advance(PARTITIONS, stamp_at(joined.now))
    moving, entries = joined.saved()
    assert (moving, len(entries)) == (0, len(KEYS))


def test_copy_needs_a_quorum_of_replicas(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    joined.down = {"b"}
    with pytest.raises(Unavailable):
        joined.save()  # the session learns that b is away
    assert len(joined.save()) == len(KEYS)
    joined.down = {"b", "c"}
    for _ in range(3):
        with pytest.raises(Unavailable):
            joined.save()


def test_copy_refuses_answer_with_wrong_number_of_flags(joined: Caller) -> None:
    def cut(envelope: Envelope) -> Envelope:
        if not isinstance(envelope.message, DigestsReply):
            return envelope
        return envelope._replace(message=replace(envelope.message, busy=b""))

    joined.put({A: 1})
    joined.tamper_answer = cut
    with pytest.raises(ProtocolError, match="sent 0 flags for 12 partitions"):
        joined.save()
