"""Copying one piece of a cluster in memory, whatever its replicas are up to."""

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

#: Keys that are in the piece that is copied, several in each partition.
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


def test_what_all_replicas_have_is_copied_once_with_its_tombstones(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1) | {"elsewhere": 1}, "all")
    joined.delete(A, level="all")
    joined.asked.clear()
    moving, entries = joined.saved()
    assert moving == 0
    assert values(joined, dict(entries)) == {A: None, B: b"\x01"} | dict.fromkeys(REST, b"\x01")
    assert len(entries) == len(KEYS)
    kinds = Counter(type(envelope.message).__name__ for _, envelope in joined.asked)
    assert kinds["CopyRequest"] <= 3  # one for each peer that gives something


def test_what_one_replica_missed_is_in_the_copy(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    for peer in "abc":
        # Each write is on two of three replicas, whichever two are asked.
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


def test_a_damaged_record_is_taken_from_another_replica(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    for peer in "ab":
        joined.corruption(peer, KEYS["ab".index(peer)])
        joined.peers[peer].local_partitions.changed(PARTITIONS, joined.now)
    assert values(joined, joined.save()) == dict.fromkeys(KEYS, b"\x01")


def test_what_is_damaged_on_all_replicas_is_not_left_out_in_silence(joined: Caller) -> None:
    joined.put({A: 1}, "all")
    for peer in "abc":
        joined.corruption(peer, A)
        joined.peers[peer].local_partitions.changed(PARTITIONS, joined.now)
    with pytest.raises(CorruptRecord, match="mended first"):
        joined.save()


def test_a_partition_that_changes_meanwhile_is_copied_again(joined: Caller) -> None:
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


def test_one_that_never_stands_still_is_taken_as_it_is(joined: Caller) -> None:
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


def test_what_is_buried_is_not_there_any_more(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    joined.delete(A, level="all")
    joined.bury()
    assert values(joined, joined.save()) == dict.fromkeys([B, *REST], b"\x01")


def test_what_is_about_to_be_buried_does_not_count(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    joined.delete(A, level="all")
    joined.now += 10
    for core in joined.peers.values():
        core.local_partitions.advance(PARTITIONS, stamp_at(joined.now))
    moving, entries = joined.saved()
    assert (moving, len(entries)) == (0, len(KEYS))


def test_a_quorum_is_enough_and_less_is_not(joined: Caller) -> None:
    joined.put(dict.fromkeys(KEYS, 1), "all")
    joined.down = {"b"}
    with pytest.raises(Unavailable):
        joined.save()  # the session learns that b is away
    assert len(joined.save()) == len(KEYS)
    joined.down = {"b", "c"}
    for _ in range(3):
        with pytest.raises(Unavailable):
            joined.save()


def test_an_answer_with_another_number_of_flags_is_refused(joined: Caller) -> None:
    def cut(envelope: Envelope) -> Envelope:
        if not isinstance(envelope.message, DigestsReply):
            return envelope
        return envelope._replace(message=replace(envelope.message, busy=b""))

    joined.put({A: 1})
    joined.tamper_answer = cut
    with pytest.raises(ProtocolError, match="number of flags"):
        joined.save()
