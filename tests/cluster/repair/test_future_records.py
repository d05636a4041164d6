"""Tests of records from the future: the replicas settle them and converge."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any
from unittest.mock import Mock

import pytest

from dstash.cluster.repair import future_records
from dstash.cluster.repair.future_records import FutureRecords, restamp_all
from dstash.cluster.replication.tasks import Merge, Pause
from dstash.cluster.topology.view import View
from dstash.peer.background.maintenance import Pace
from dstash.store.record import (
    Record,
    build_record,
    head,
    open_record,
    partition_of,
    version_of,
)
from dstash.store.register.header import Header, pack_header
from dstash.types import RecordFlag
from dstash.version import (
    MAX_STAMP,
    newest_stamp,
    pack,
    stamp_at,
    stamp_milliseconds,
    unpack,
    with_touch,
)
from dstash.wire import codec
from tests.harness.joined import TYPES, Joined

HOUR = 3_600_000
START = 1_700_000_000_000


def joined_with(names: str = "abc") -> Joined:
    joined = Joined(names, pace=Pace(4000, 10**9, 0))
    pass_time(joined, 3000)
    return joined


def pass_time(joined: Joined, milliseconds: int = 12_000) -> None:
    for _ in range(milliseconds // 1000):
        joined.now += 1000
        for _ in range(3):
            joined.settle()


def replicas(joined: Joined) -> tuple[str, ...]:
    return View(joined.topology).readers[partition_of(b"k")]


def put_future(
    joined: Joined, *peers: str, value: Any = "future", flags: int = 0, ahead: int = HOUR
) -> bytes:
    """Store a record on peers that is stamped an hour ahead."""
    version = pack(stamp_at(joined.now + ahead), b"oops")
    payload = b"" if flags else TYPES.encode_many([value])[0]
    record = build_record(
        b"i", b"k", open_record(bytes(8) + head(version, flags))._replace(payload=payload)
    )
    for peer in peers:
        store(joined, peer, record)
    return record


def store(joined: Joined, peer: str, record: bytes) -> None:
    joined.stores[peer].records[joined.place("k")] = record
    stamp = newest_stamp(version_of(record))
    for name in ("high_water", "newest"):
        setattr(joined.stores[peer], name, max(getattr(joined.stores[peer], name), stamp))
    joined.peers[peer].local_partitions.changed([partition_of(b"k")], joined.now)


def values(joined: Joined) -> list[Any]:
    found: list[Any] = []
    for peer in replicas(joined):
        record = joined.record(peer, "k")
        if record is None or open_record(record).is_tombstone:
            found.append(None)
        else:
            found += TYPES.decode_array(codec.join_payloads([open_record(record).payload]))
    return found


def assert_equal_and_past(joined: Joined) -> None:
    records = {joined.record(peer, "k") for peer in replicas(joined)}
    [record] = records
    assert record is not None
    assert stamp_milliseconds(newest_stamp(version_of(record))) <= joined.now


@pytest.mark.parametrize("fast", "abc")
def test_record_on_one_replica_yields_to_other_replicas(fast: str) -> None:
    joined = joined_with()
    joined.put({"k": "old"})
    put_future(joined, fast)
    pass_time(joined)
    assert values(joined) == ["old"] * 3
    assert_equal_and_past(joined)


@pytest.mark.parametrize("fast", "abc")
def test_only_record_of_a_key_spreads_to_all_replicas(fast: str) -> None:
    joined = joined_with()
    put_future(joined, fast)
    pass_time(joined)
    assert values(joined) == ["future"] * 3
    assert_equal_and_past(joined)
    joined.put({"k": "new"}, "all")
    assert values(joined) == ["new"] * 3


def test_future_delete_loses_to_value_on_other_replicas() -> None:
    joined = joined_with()
    joined.put({"k": "old"})
    put_future(joined, "a", flags=RecordFlag.TOMBSTONE)
    pass_time(joined)
    assert values(joined) == ["old"] * 3


def test_record_on_a_quorum_of_replicas_wins() -> None:
    joined = joined_with("abcde")
    joined.put({"k": "old"}, "all")
    first, second, _ = replicas(joined)
    put_future(joined, first, second)
    pass_time(joined)
    assert values(joined) == ["future"] * 3
    assert_equal_and_past(joined)


def test_record_held_by_a_majority_of_members_is_kept() -> None:
    joined = joined_with()
    joined.put({"k": "old"}, "all")
    record = put_future(joined, "a", "b")
    pass_time(joined)
    assert [joined.record(peer, "k") for peer in "abc"] == [record] * 3


def test_record_waits_for_an_unavailable_replica() -> None:
    joined = joined_with("abcde")
    joined.put({"k": "old"}, "all")
    first, _, third = replicas(joined)
    record = put_future(joined, first, third)
    joined.down = {third}
    pass_time(joined, 8000)
    assert joined.record(first, "k") == record
    joined.down = set()
    pass_time(joined)
    assert values(joined) == ["future"] * 3


def test_record_waits_for_an_agreement_on_a_horizon() -> None:
    joined = joined_with()
    joined.put({"k": "old"})
    record = put_future(joined, "a", flags=RecordFlag.TOMBSTONE)
    partition, stamp = partition_of(b"k"), stamp_at(joined.now)
    joined.peers["a"].local_partitions.promise(partition, stamp, joined.now)
    pass_time(joined, 5000)
    assert joined.record("a", "k") == record
    pass_time(joined)
    assert values(joined) == ["old"] * 3
    assert_equal_and_past(joined)


def test_record_is_examined_again_when_the_horizon_rises_before_the_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record that would have replaced it has expired, so replicas agree on a later stamp."""
    joined = joined_with()
    joined.put({"k": "old"})
    record = put_future(joined, "a", flags=RecordFlag.TOMBSTONE)
    for peer in "bc":
        joined.expire(peer, "k", joined.now)
    horizons = iter([stamp_at(joined.now)])

    def merge_while_horizon_rises(*merge: Any, **more: Any) -> Merge:
        for stamp in horizons:
            for peer in joined.peers.values():
                peer.local_partitions.advance([partition_of(b"k")], stamp)
        return Merge(*merge, **more)

    monkeypatch.setattr(future_records, "Merge", merge_while_horizon_rises)
    pass_time(joined, 3000)
    assert joined.record("a", "k") == record
    pass_time(joined)
    assert values(joined) == [None] * 3
    assert_equal_and_past(joined)


def test_record_that_is_older_than_an_earlier_future_record_is_settled_too() -> None:
    """It is accepted while the cluster clock is ahead, after the earlier one was settled."""
    joined = joined_with("abcde")
    joined.put({"k": "old"}, "all")
    first, *_ = replicas(joined)
    put_future(joined, first, ahead=2 * HOUR)
    pass_time(joined)
    assert values(joined) == ["old"] * 3
    joined.offsets = {peer: HOUR for peer in "abcde" if peer != first}
    pass_time(joined, 4000)
    put_future(joined, first, ahead=HOUR)
    joined.offsets = {}
    pass_time(joined, 20_000)
    assert values(joined) == ["old"] * 3
    assert_equal_and_past(joined)


@pytest.mark.parametrize("is_held", [True, False])
def test_lower_bound_that_follows_stamps_makes_records_future_for_as_long(is_held: bool) -> None:
    """A bound that follows a clock passes the records soon: its small steps count for nothing."""
    bound = stamp_at(START + HOUR)
    clock = Mock(knows_majority=True, is_present_held=is_held)
    clock.time.return_value = START
    replica, scheduler = Mock(clock=clock), Mock()
    replica.local_partitions.store.newest = stamp_at(START + 2 * HOUR)
    scheduler.running.return_value = False
    scheduler.spawn.side_effect = lambda name, task, ended: ended(0, None)
    future = FutureRecords(replica, scheduler)

    def begun(now: int, at: int) -> int:
        """Tick for three seconds with a bound; return how many tasks have begun."""
        clock.latest.return_value = clock.highest_possible.return_value = at
        scheduler.spawn.reset_mock()
        for moment in range(now, now + 3000, 100):
            future.tick(moment)
        return int(scheduler.spawn.call_count)

    assert begun(START, bound) == 1
    assert begun(START + 3000, bound) == 0, "all records are resolved"
    assert begun(START + 6000, bound - stamp_at(1000)) == is_held
    assert begun(START + 9000, bound - stamp_at(1000)) == 0


def test_record_is_left_while_it_is_not_certainly_from_the_future() -> None:
    joined = joined_with()
    record = put_future(joined, "a")
    replica = joined.peers["a"].maintenance.replica
    replica.clock.advance(joined.now + 10_000)  # it was stopped: it has to ask the others again
    assert replica.clock.highest_possible() == MAX_STAMP
    with pytest.raises(StopIteration) as ended:
        next(restamp_all(replica))
    assert ended.value.value == 1
    assert joined.record("a", "k") == record


def hold_each(joined: Joined, held: tuple[int, ...]) -> int | str:
    """Store on each replica the record with its number (0: none); returns what wins.

    A replica with a higher record may have had a lower one before, so a record may be acked when a
    quorum of replicas hold it or a higher one.
    """
    for peer, number in zip(replicas(joined), held, strict=True):
        if number:
            put_future(joined, peer, value=number, ahead=number * HOUR)
    return sorted(held)[1] or "old"


@pytest.mark.parametrize(
    "held", [*permutations((0, 1, 2)), *permutations((1, 2, 3)), (0, 1, 1), (2, 1, 1), (1, 2, 2)]
)
def test_highest_record_that_a_quorum_may_have_accepted_wins(held: tuple[int, ...]) -> None:
    joined = joined_with("abcdef")  # no majority of the members hold these stamps
    joined.put({"k": "old"}, "all")
    expected = hold_each(joined, held)
    pass_time(joined, 20_000)  # up to three rounds, one after the other
    assert values(joined) == [expected] * 3
    assert_equal_and_past(joined)


@pytest.mark.parametrize("silent", range(3))
def test_record_that_an_unavailable_replica_may_have_accepted_is_not_lost(silent: int) -> None:
    joined = joined_with("abcdef")
    joined.put({"k": "old"}, "all")
    expected = hold_each(joined, (1, 2, 0))
    joined.down = {replicas(joined)[silent]}
    pass_time(joined, 8000)
    joined.down = set()
    pass_time(joined, 20_000)
    assert values(joined) == [expected] * 3


def test_earlier_record_of_an_unavailable_replica_does_not_return_at_its_time() -> None:
    joined = joined_with("abcdef")
    joined.put({"k": "old"}, "all")
    first, second, third = replicas(joined)
    put_future(joined, third, value="earlier", ahead=60_000)
    put_future(joined, first, second, value="acked")
    stopped = joined.peers.pop(third)
    joined.install(joined.topology)
    pass_time(joined, 8000)
    joined.peers[third] = stopped
    joined.install(joined.topology)
    joined.now += 60_000
    pass_time(joined, 20_000)
    assert values(joined) == ["acked"] * 3
    assert_equal_and_past(joined)


def lose(joined: Joined, peer: str, *, is_waived: bool = False) -> None:
    """Let a peer lose its data, so that it is streamed again; its acks may be waived."""
    joined.forget(peer, "k")
    lost = next(member for member in joined.topology.members if member.id == peer)
    changed = replace(lost, synced=False, waived=lost.store_id if is_waived else "")
    members = tuple(changed if member is lost else member for member in joined.topology.members)
    joined.topology = replace(joined.topology, epoch=joined.topology.epoch + 1, members=members)
    joined.install(joined.topology)


@pytest.mark.parametrize("is_waived", [False, True])
def test_record_is_kept_if_the_other_replica_that_had_it_lost_its_data(is_waived: bool) -> None:
    joined = joined_with("abcde")
    joined.put({"k": "old"}, "all")
    first, second, third = replicas(joined)
    put_future(joined, first)
    lose(joined, second, is_waived=is_waived)
    pass_time(joined)
    record = joined.record(first, "k")
    assert record == joined.record(third, "k")
    assert values(joined)[0] == ("old" if is_waived else "future")
    assert stamp_milliseconds(newest_stamp(version_of(record or b""))) <= joined.now


def test_record_waits_for_an_unavailable_replica_while_another_has_lost_its_data() -> None:
    joined = joined_with("abcde")
    joined.put({"k": "old"}, "all")
    first, second, third = replicas(joined)
    record = put_future(joined, first)
    lose(joined, second)
    joined.down = {third}
    pass_time(joined, 8000)
    assert joined.record(first, "k") == record
    joined.down = set()
    pass_time(joined)
    assert values(joined)[0] == "future"


def test_touch_from_the_future_does_not_win_over_a_later_write() -> None:
    joined = joined_with("abcde")
    joined.put({"k": "old"}, "all")
    first, _, _ = replicas(joined)
    before = joined.record(first, "k")
    assert before is not None
    stored = open_record(before)
    touched = stored._replace(version=with_touch(stored.version, stamp_at(joined.now + HOUR)))
    joined.down = {first}
    joined.now += 1000
    assert joined.put({"k": "new"}).ok
    joined.down = set()
    store(joined, first, build_record(b"i", b"k", touched))
    pass_time(joined)
    assert values(joined) == ["new"] * 3


def test_concurrent_write_is_kept() -> None:
    joined = joined_with()
    joined.put({"k": "old"}, "all")
    put_future(joined, "a")
    assert joined.put({"k": "new"}).ok
    pass_time(joined)
    assert values(joined) == ["new"] * 3


def test_touch_from_the_future_keeps_the_value() -> None:
    joined = joined_with()
    joined.put({"k": "old"}, "all")
    before = joined.record("a", "k")
    assert before is not None
    stored = open_record(before)
    touched = stored._replace(
        version=with_touch(stored.version, stamp_at(joined.now + HOUR)), expiry=joined.now + HOUR
    )
    joined.forget("b", "k")
    joined.forget("c", "k")
    store(joined, "a", build_record(b"i", b"k", touched))
    pass_time(joined)
    assert values(joined) == ["old"] * 3
    after = joined.record("b", "k")
    assert after is not None
    stamp, _, touch = unpack(version_of(after))
    assert touch == stamp + 1


def test_records_of_one_client_get_distinct_versions() -> None:
    joined = joined_with("abcde")
    first, second, _ = replicas(joined)
    put_future(joined, first, value="earlier")
    joined.now += 1
    put_future(joined, second, value="later")
    pass_time(joined)
    assert len({joined.record(peer, "k") for peer in replicas(joined)}) == 1
    assert set(values(joined)) <= {"earlier", "later"}


@pytest.mark.parametrize("holder", "abc")
def test_register_is_neither_restamped_nor_replaced(holder: str) -> None:
    """A quorum may have chosen it, so only a later round replaces it."""
    joined = joined_with()
    stamp = stamp_at(joined.now + HOUR)
    content = pack_header(Header(stamp)) + b"\x01"
    register = Record(pack(stamp, b"oops"), RecordFlag.REGISTER, 0, content)
    storage_key = joined.place("k")[:2] + b"\x02@ik"
    record = build_record(b"@i", b"k", register)
    joined.stores[holder].records[storage_key] = record
    joined.stores[holder].high_water = joined.stores[holder].newest = stamp
    joined.peers[holder].local_partitions.changed([partition_of(b"k")], joined.now)
    pass_time(joined)
    assert joined.stores[holder].records[storage_key] == record
    effects = list(restamp_all(joined.peers[holder].maintenance.replica))
    assert not [effect for effect in effects if not isinstance(effect, Pause)], "it asks nothing"
