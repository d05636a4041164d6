"""Tests of streaming: enough sources, and no return of reaped records."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from dstash.cluster.repair.antientropy import _differing
from dstash.cluster.replication import handlers, streaming
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.replica import RECORD_BYTES, Replica
from dstash.cluster.replication.streaming import _compare, _copy_all, _Streamer, sources
from dstash.cluster.replication.tasks import Merge, Pause
from dstash.cluster.replication.throttle import Throttle
from dstash.cluster.replication.tombstone_gc import clean_up
from dstash.cluster.replication.transfer import copy, push
from dstash.errors import ProtocolError
from dstash.limits import MIB
from dstash.store.memory import TwinStore
from dstash.store.record import head, keyspace, partition_of
from dstash.store.sealing import seal
from dstash.types import RecordFlag
from dstash.version import WRITER_BYTES, pack, stamp_at
from dstash.wire.packing import pack_partitions, split_horizons
from dstash.wire.replication import CopyRequest, DigestsRequest
from tests.cluster.virtual import ANSWERS, NOW, PARTITION, Cluster

PAST = stamp_at(NOW - 60_000)


def test_write_missed_by_one_replica_is_streamed() -> None:
    for missed_by in "abc":
        cluster = Cluster()
        for peer in set("abc") - {missed_by}:
            cluster.write(peer, stamp_at(NOW))
        assert cluster.stream("d") == [PARTITION]
        assert cluster.records("d") == 1


@pytest.mark.parametrize("has_record", [False, True])
def test_source_with_a_corrupt_record_is_replaced_by_another(has_record: bool) -> None:
    cluster = Cluster()
    for peer in "abcd" if has_record else "abc":
        cluster.write(peer, stamp_at(NOW))
    store = cluster.peers["a"].local_partitions.store
    assert isinstance(store, TwinStore)
    [(key, record)] = store.records.items()
    store.records[key] = record[:-1] + b"\xff"
    able, needed = sources(cluster.peers["d"], PARTITION)
    assert "a" in able[:needed]
    assert cluster.stream("d") == [PARTITION]
    assert cluster.records("d") == 1


def test_only_partitions_with_records_are_compared() -> None:
    cluster = Cluster()
    assert cluster.stream("d") == [PARTITION]
    assert (cluster.asked[CopyRequest], cluster.compared) == (0, 0), "there is nothing"
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW))
    assert cluster.stream("d") == [PARTITION]
    assert (cluster.asked[CopyRequest], cluster.compared) == (1, 1), "from one, then another"
    assert cluster.stream("d") == [PARTITION]
    assert (cluster.asked[CopyRequest], cluster.compared) == (1, 3)


def throttle_of(replica: Replica) -> Throttle:
    return Throttle(replica, lambda: replica.streaming_rate)


def streamer(cluster: Cluster) -> _Streamer:
    return _Streamer(cluster.peers["d"], throttle_of(cluster.peers["d"]), print, False, {})


@pytest.mark.parametrize("reported", ["digest", "flag"])
def test_source_without_counts_is_not_treated_as_empty(
    reported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW))

    def earlier(local_partitions: LocalPartitions, question: DigestsRequest, now: int) -> Any:
        answer = yield from handlers.digests(
            local_partitions, DigestsRequest(question.partitions), now
        )
        known = {"digests": bytes(16)} if reported == "flag" else {}
        return replace(answer, counts=bytes(4), busy=bytes([reported == "flag"]), **known)

    monkeypatch.setitem(ANSWERS, DigestsRequest, earlier)
    cluster.run("d", _copy_all(streamer(cluster), [PARTITION], "a"))
    assert cluster.records("d") == 1


@pytest.mark.parametrize("flags", [b"", b"\0\0"])
def test_reply_with_wrong_number_of_flags_is_rejected(
    flags: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreconciled(local_partitions: LocalPartitions, question: DigestsRequest, now: int) -> Any:
        answer = yield from handlers.digests(local_partitions, question, now)
        return replace(answer, busy=flags)

    cluster = Cluster()
    monkeypatch.setitem(ANSWERS, DigestsRequest, unreconciled)
    replica, question = cluster.peers["d"], DigestsRequest(pack_partitions([PARTITION]))
    for task in (
        _copy_all(streamer(cluster), [PARTITION], "a"),
        _compare(streamer(cluster), [PARTITION], "a", set(), {}),
        _differing(replica, "a", question),
    ):
        with pytest.raises(ProtocolError, match="flags for 1 partitions"):
            cluster.run("d", task)


def test_peer_of_an_earlier_version_sends_no_horizons() -> None:
    assert split_horizons(b"", 2) == []
    assert split_horizons(bytes(7) + b"\1" + bytes(7) + b"\2", 2) == [1, 2]


def hold_400_kilobytes(cluster: Cluster) -> int:
    """Store records on a, b and c; return their number."""
    keys = [key for n in range(200_000) if partition_of(key := b"%d" % n) == PARTITION][:40]
    space = keyspace(b"index", frozenset([PARTITION]))
    version = pack(stamp_at(NOW), bytes(WRITER_BYTES))
    entries = seal(space, keys, head(version), [b"\xda\x27\x10" + bytes(10_000)] * len(keys))
    for peer in "abc":
        cluster.commit(peer, Merge(entries))
    return len(keys)


@pytest.mark.parametrize(
    ("rate", "delay", "pages"),
    [(0, 0, 6), (32 * MIB, 0, 6), (32 * MIB + 1, 0, 1), (0, 6, 4), (0, 100, 3), (MIB, 90, 6)],
)
def test_pages_are_small_unless_the_rate_needs_more(rate: int, delay: int, pages: int) -> None:
    cluster = Cluster()
    records = hold_400_kilobytes(cluster)
    cluster.delay = delay
    cluster.limit(rate)
    assert cluster.stream("d") == [PARTITION]
    assert cluster.records("d") == records
    assert cluster.asked[CopyRequest] == pages


@pytest.mark.parametrize(("records", "pages"), [(1, 4), (3, 5)])
def test_pages_name_no_more_partitions_than_they_may_come_from(records: int, pages: int) -> None:
    """Requests name 16, 32, 64 and more partitions, until they fill a page of 80 KiB."""
    cluster = Cluster()
    held = range(7, 207)
    space = keyspace(b"index", frozenset(range(4096)))
    keys: dict[int, list[bytes]] = {partition: [] for partition in held}
    for number in range(100_000):
        key = b"%d" % number
        if len(some := keys.get(partition_of(key), [b""] * records)) < records:
            some.append(key)
    version = pack(stamp_at(NOW), bytes(WRITER_BYTES))
    every = [key for some in keys.values() for key in some]
    entries = seal(space, every, head(version), [b"\xc4\x96" + bytes(150)] * len(every))
    cluster.commit("a", Merge(entries))
    replica = cluster.peers["d"]
    copied = cluster.run("d", copy(replica, list(held), "a", throttle_of(replica)))
    assert copied == len(entries) == 200 * records
    assert replica.local_partitions.walk_all(list(held), b"", 1000) == sorted(entries)
    assert cluster.asked[CopyRequest] == pages


@pytest.mark.parametrize("delay", [0, 20])
def test_slow_page_is_followed_without_a_pause(delay: int) -> None:
    cluster = Cluster()
    hold_400_kilobytes(cluster)
    cluster.delay = delay
    cluster.limit(1_000_000)
    cluster.stream("d")
    assert 750 < cluster.now - NOW < 900, "each of two fillers has half of the rate"


def test_long_pauses_do_not_accumulate() -> None:
    cluster = Cluster()
    hold_400_kilobytes(cluster)
    cluster.late = 9
    cluster.limit(1_000_000)
    cluster.stream("d")
    assert 750 < cluster.now - NOW < 850, "and not 9 ms more for each page"


def test_delayed_task_exceeds_the_rate_only_briefly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster()
    hold_400_kilobytes(cluster)

    def held_up(local_partitions: LocalPartitions, question: CopyRequest, now: int) -> Any:
        cluster.now += 400 if cluster.asked[CopyRequest] == 4 else 0
        return handlers.copy(local_partitions, question, now)

    monkeypatch.setitem(ANSWERS, CopyRequest, held_up)
    cluster.limit(1_000_000)
    cluster.stream("d")
    held_up_for = 400 - 2 * 80  # the page itself may take this long
    assert 750 + held_up_for - 60 < cluster.now - NOW < 900 + held_up_for


def test_removed_rate_limit_leaves_no_debt() -> None:
    cluster = Cluster()
    throttle = throttle_of(cluster.peers["d"])
    cluster.limit(1000)
    waiting = throttle.keep(60_000)  # for a minute
    assert next(waiting) == Pause(200)
    cluster.limit(0)
    cluster.run("d", waiting)
    cluster.limit(1_000_000)
    cluster.run("d", throttle.keep(50_000))
    assert cluster.now - NOW == 50


def test_rate_of_a_topology_change_does_not_slow_repairs() -> None:
    cluster = Cluster()
    replica = cluster.peers["a"]
    space = keyspace(b"index", frozenset((PARTITION,)))
    keys = [key for n in range(1 << 17) if partition_of(key := b"%d" % n) == PARTITION][:10]
    entries = seal(
        space, keys, head(pack(PAST, bytes(WRITER_BYTES))), [b"\xc5\x27\x10" + bytes(10_000)] * 10
    )
    cluster.limit(1000)
    replica.repair_rate = 1_000_000
    cluster.run("a", push(replica, "b", entries))
    assert 100 <= cluster.now - NOW < 1000, "100 kB at 1 MB/s"
    began = cluster.now
    cluster.limit(0)
    replica.repair_rate = 100_000
    cluster.run("a", push(replica, "b", entries))
    assert 1000 <= cluster.now - began < 2000, "the rate of repairs counts in a change, too"


def hold_small_records(cluster: Cluster) -> tuple[int, int]:
    """Store records of 100 partitions on a, b and c; return their number and effort (bytes)."""
    space = keyspace(b"index", frozenset(range(4096)))
    version = pack(stamp_at(NOW), bytes(WRITER_BYTES))
    keys = [key for n in range(200_000) if partition_of(key := b"%d" % n) < 100]
    entries = seal(space, keys, head(version), [b"\xc4\x14" + bytes(20)] * len(keys))
    for peer in "abc":
        cluster.commit(peer, Merge(entries))
    return len(keys), sum(len(key) + len(record) for key, record in entries)


def test_pages_of_small_records_grow_until_they_reach_the_rate() -> None:
    """The effort of a small record is above its bytes, which the rate limits."""
    cluster = Cluster()
    records, weight = hold_small_records(cluster)
    cluster.delay = 15
    cluster.limit(8_000_000)
    d = cluster.peers["d"]
    assert cluster.run("d", copy(d, list(range(100)), "a", throttle_of(d))) == records
    at_least = 1000 * 2 * weight / 8_000_000  # the other task uses its half
    assert at_least - 1 < cluster.now - NOW < at_least + 20


@pytest.mark.parametrize("rate", [0, 20_000_000, 32 * MIB, 32 * MIB + 1])
def test_small_records_are_limited_by_effort_unless_rate_is_high(rate: int) -> None:
    cluster = Cluster()
    records, weight = hold_small_records(cluster)
    cluster.delay = 4
    cluster.limit(rate)
    d = cluster.peers["d"]
    assert cluster.run("d", copy(d, list(range(100)), "a", throttle_of(d))) == records
    per_second = records / ((cluster.now - NOW) / 1000) * 2  # the other task uses its half
    if rate > 32 * MIB:
        assert per_second == pytest.approx(rate / (weight / records), rel=0.1)
    else:
        assert per_second == pytest.approx(42_000_000 / (weight / records + RECORD_BYTES), rel=0.1)
        assert cluster.asked[CopyRequest] == 20, "no larger pages than that takes"


def test_throttle_makes_up_for_time_between_batches() -> None:
    cluster = Cluster()
    _, weight = hold_small_records(cluster)
    cluster.delay = 10
    cluster.limit(1_000_000)
    cluster.run("d", streaming.stream(cluster.peers["d"], range(100), print))
    at_least = 1000 * 2 * weight / 1_000_000
    assert cluster.asked[DigestsRequest] > 20
    assert at_least - 1 < cluster.now - NOW < at_least + 50


@pytest.mark.parametrize(
    ("weight", "sizes"),
    [
        (0, [32, 64, 128, 256, 256, 256, 8]),
        (4 * 1024, [32, 64, 128, 256, 256, 256, 8]),  # not more, which would be 2 MiB
        (40 * 1024, [32] + [64] * 15 + [8]),
        (64 * 1024, [32] * 31 + [8]),
        (200 * 1024, [32] * 31 + [8]),
        (MIB, [32, 16] + [8] * 119),
    ],
)
@pytest.mark.parametrize("counted_as", ["bytes", "records"])
def test_batch_size_follows_the_effort_of_the_last_batch(
    weight: int, sizes: list[int], counted_as: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def take(streamer: Any, partitions: list[int]) -> Any:
        taken.append(len(partitions))
        per_partition = weight if counted_as == "bytes" else weight // RECORD_BYTES
        progress = streamer.replica.progress
        before = getattr(progress, counted_as)
        setattr(progress, counted_as, before + len(partitions) * per_partition)
        yield Pause()
        return []

    monkeypatch.setattr(streaming, "_stream_some", take)
    cluster = Cluster()
    cluster.run("d", streaming.stream(cluster.peers["d"], range(1000), print))
    assert taken == sizes


def test_sources_include_every_acked_write() -> None:
    cluster = Cluster()
    able, needed = sources(cluster.peers["d"], PARTITION)
    assert (sorted(able), needed) == (["a", "b", "c"], 2)
    able, needed = sources(cluster.peers["a"], PARTITION)  # one of them is the peer itself
    assert (sorted(able), needed) == (["b", "c"], 1)


@pytest.mark.parametrize("done", range(4))
def test_partition_regained_during_cleanup_is_streamed(done: int) -> None:
    cluster = Cluster()
    for peer in "abcd":  # d lost the partition in the previous change
        cluster.write(peer, stamp_at(NOW - 90_000))
        cluster.commit(
            peer, Merge(marks=[cluster.peers[peer].local_partitions.advance([PARTITION], PAST)])
        )
    cleanup = clean_up(cluster.peers["d"], [PARTITION])
    for effect in islice(cleanup, done):
        assert isinstance(effect, Merge)
        cluster.commit("d", effect)
    cleanup.close()
    assert cluster.stream("d") == [PARTITION]
    assert cluster.records("d") == 1
    assert cluster.peers["d"].local_partitions.horizons[PARTITION] == PAST


@pytest.mark.parametrize("keeps_another", [False, True])
def test_collected_records_do_not_come_back(keeps_another: bool) -> None:
    cluster = Cluster()
    for peer in "abcd":  # d had the partition before, and was not cleaned up since
        cluster.write(peer, stamp_at(NOW - 90_000))
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW - 80_000), flags=RecordFlag.TOMBSTONE)
    cluster.set_horizon(stamp_at(NOW - 60_000))
    assert [cluster.records(peer) for peer in "abcd"] == [0, 0, 0, 1]
    if keeps_another:
        for peer in "abc":
            cluster.write(peer, stamp_at(NOW - 1000))
    assert cluster.stream("d") == [PARTITION]
    assert cluster.records("d") == int(keeps_another)
    # It does not arrive by another path either, because the horizon was streamed too.
    cluster.write("d", stamp_at(NOW - 90_000))
    assert cluster.records("d") == int(keeps_another)


def test_horizon_from_a_wrong_clock_is_not_adopted() -> None:
    cluster = Cluster()
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW))
        cluster.peers[peer].local_partitions.advance([PARTITION], stamp_at(NOW + 3_600_000))
    assert cluster.stream("d") == [PARTITION]
    assert cluster.records("d") == 1
    taken = cluster.peers["d"]
    assert taken.local_partitions.horizons[PARTITION] == taken.clock.latest()
    assert taken.local_partitions.floor == taken.clock.latest() < stamp_at(NOW + 1000)
