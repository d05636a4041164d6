"""Tests of the tracking of corrupt records, past its limit."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from dstash.cluster.replication import corruption as module
from dstash.cluster.replication.corruption import Corruption
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.limits import PARTITIONS
from dstash.store.interface import Write
from dstash.store.memory import TwinStore
from dstash.store.record import head, keyspace, partition_of
from dstash.store.sealing import seal
from dstash.version import pack

SPACE = keyspace(b"i", frozenset(range(PARTITIONS)))
KEPT = 4


@pytest.fixture(autouse=True)
def _few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_TRACKED", KEPT)


def keys(partition: int, count: int) -> list[bytes]:
    found = (b"%d" % number for number in range(1 << 30))
    return [next(key for key in found if partition_of(key) == partition) for _ in range(count)]


def holdings_of(*names: bytes) -> LocalPartitions:
    """Return a store in which every record has a flipped bit in its value."""
    store = TwinStore()
    records = seal(SPACE, names, head(pack(4, b"test")), [b"\1"] * len(names))
    store.commit([Write(records, 0)])
    store.records = {key: record[:-1] + b"?" for key, record in store.records.items()}
    return LocalPartitions(store)


def write_again(local_partitions: LocalPartitions, *names: bytes) -> None:
    records = seal(SPACE, names, head(pack(5, b"test")), [b"\1"] * len(names))
    local_partitions.store.records.update(records)  # type: ignore[attr-defined]


def run(task: Generator[Any, Any, Any]) -> None:
    for _ in task:
        continue


def test_partition_past_the_limit_is_corrupt_until_read() -> None:
    first, late = keys(7, KEPT), keys(8, 2)
    local_partitions = holdings_of(*first, *late)
    run(local_partitions.digests.scrub(7))
    run(local_partitions.digests.scrub(8))
    corruption = local_partitions.corruption
    assert (len(corruption), corruption.found) == (KEPT, KEPT), "memory is bounded"
    assert 8 in corruption
    assert corruption.to_check() == [], "there is no room to know them"
    corruption.forget(corruption.known(7))
    assert corruption.to_check() == [8]
    run(local_partitions.digests.scrub(8))
    assert (len(corruption), corruption.to_check()) == (2, []), "they are tracked now"
    corruption.forget(corruption.known(8))
    assert 8 not in corruption
    assert (corruption.found, corruption.repaired) == (KEPT + 2, KEPT + 2)


def test_partition_past_the_limit_is_sound_after_a_clean_read() -> None:
    first, late = keys(7, KEPT), keys(8, 2)
    local_partitions = holdings_of(*first, *late)
    run(local_partitions.digests.scrub(7))
    run(local_partitions.digests.scrub(8))
    write_again(local_partitions, *late)
    run(local_partitions.digests.scrub(8))
    assert 8 not in local_partitions.corruption


def test_corrupt_key_of_a_corrupt_record_is_noticed() -> None:
    """Its record is missing under the key that it had."""
    [name] = keys(7, 1)
    local_partitions = holdings_of(name)
    run(local_partitions.digests.scrub(7))
    corruption = local_partitions.corruption
    assert len(corruption) == 1
    assert corruption.misplaced == b"", "only the value is damaged"
    [storage_key] = corruption.known(7)
    damaged = storage_key[:-1] + bytes((storage_key[-1] ^ 1,))
    for key in (damaged, b"\0", storage_key[:2] + b"\0" + name, storage_key[:3]):
        corruption.misplaced = b""
        corruption.report([key])
        assert corruption.misplaced == key


def test_rewritten_record_is_sound_after_a_scrub() -> None:
    names = keys(7, 3)
    local_partitions = holdings_of(*names)
    run(local_partitions.digests.scrub(7))
    write_again(local_partitions, *names[:2])
    run(local_partitions.digests.scrub(7))
    assert len(local_partitions.corruption) == 1
    write_again(local_partitions, *names)
    run(local_partitions.digests.scrub(7))
    assert 7 not in local_partitions.corruption
    assert local_partitions.corruption.repaired == 3


def test_corruption_found_by_a_read_counts() -> None:
    corruption = Corruption()
    corruption.report([(7).to_bytes(2, "big") + b"\x01i%d" % number for number in range(KEPT)])
    corruption.report([(9).to_bytes(2, "big") + b"\x01i"])
    assert [partition for partition in range(PARTITIONS) if partition in corruption] == [7, 9]
