"""Tests of touches with deletes and horizons: replicas agree for any expiry."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from dstash.client.operations.reads import RecordOperation
from dstash.client.operations.writes import ApplyOperation, DeleteOperation
from dstash.client.session import Send, Session
from dstash.cluster.repair.antientropy import compare_all
from dstash.cluster.replication import tombstone_gc
from dstash.cluster.replication.digests.digests import Digests
from dstash.cluster.replication.tasks import Task
from dstash.peer.background.maintenance import Pace
from dstash.store.record import build_record, partition_of
from dstash.types import NEVER, Level
from dstash.version import stamp_at, with_touch
from tests.harness.joined import TYPES, Joined

KEY = "k"
PARTITION = partition_of(KEY.encode())
SECOND = 1000


@pytest.fixture
def joined() -> Iterator[Joined]:
    """Replicas of a value, without background repair and tombstone GC."""
    made = Joined(pace=Pace(10**9, 10**9, 0))
    made.put({KEY: "v"}, "all")
    made.now += SECOND
    with mock.patch.object(Digests, "gains_from", lambda _, number, stamp: number == PARTITION):
        yield made


def touch(joined: Joined, ttl: int | None, *, at: int | None = None, level: str = "all") -> Any:
    """Change the expiry of the value as ``touch`` does."""
    read = RecordOperation(
        joined.session, joined.now + 5000, "i", [KEY], Level.ALL, TYPES.decode_values
    )
    record = joined.run(read)[KEY]
    stamp = joined.session.stamp() if at is None else stamp_at(at)
    expiry = NEVER if ttl is None else joined.now + ttl
    version = with_touch(record.version, stamp)
    content = build_record(b"i", KEY.encode(), record._replace(version=version, expiry=expiry))
    items = [(KEY, KEY.encode(), content)]
    return joined.run(ApplyOperation(joined.session, joined.now + 5000, "i", Level(level), items))


def everywhere(joined: Joined, make: Any) -> None:
    """Run a task on every peer until it ends."""
    for core in joined.peers.values():
        task: Task = make(core.maintenance.replica)
        core.scheduler.spawn("test", task)
        while core.scheduler.running("test"):
            joined.settle()
            joined.now += 1


def agree(joined: Joined, stamp_ms: int) -> None:
    """Let replicas agree on a horizon."""
    everywhere(joined, lambda replica: tombstone_gc.agree_all(replica, joined.now - stamp_ms))


def horizons(joined: Joined) -> list[int]:
    return [core.local_partitions.horizons[PARTITION] for core in joined.peers.values()]


def put_back(joined: Joined, peer: str, record: bytes | None) -> None:
    """Make a peer miss all changes of the value since a record."""
    assert record is not None
    joined.alter(peer, KEY, lambda _: record)
    joined.peers[peer].local_partitions.changed([PARTITION], joined.now)


def deliver(joined: Joined, operation: Any, sends: list[Send]) -> None:
    """Deliver some requests to their peers, and the replies to the operation."""
    waiting = deque(sends)
    joined._answers = deque()
    while (waiting or joined._answers) and not operation.done:
        joined._move(operation, waiting)


def test_missed_delete_below_a_touch_delays_horizon(
    joined: Joined,
) -> None:
    slow = Session(lambda: joined.now, random_bytes=lambda count: b"S" * count)
    slow.install(joined.topology.encode(), list("abc"))
    for peer in "abc":
        slow.learn_clock(peer, joined.now, joined.now, joined.now)
    items = [(KEY, KEY.encode(), b"")]
    delete = DeleteOperation(slow, joined.now + 5000, "i", Level.QUORUM, items)
    deletes = list(delete.more(joined.now))
    joined.now += SECOND
    between = joined.now
    joined.now += SECOND
    assert touch(joined, None).stored == 1
    deliver(joined, delete, [send for send in deletes if send.peer != "c"])
    assert delete.outcome.stored == 1
    for core in joined.peers.values():
        core.hints.forget("c")
    joined.now += 60 * SECOND
    agree(joined, between)
    assert horizons(joined) == [0, 0, 0]
    joined.now += 60 * SECOND
    everywhere(joined, tombstone_gc.reap_all)
    everywhere(joined, compare_all)
    assert joined.lookup(KEY, level="all") == {}
    assert len({joined.record(peer, KEY) for peer in "abc"}) == 1
    agree(joined, between)
    assert horizons(joined) == [stamp_at(between)] * 3
    joined.now += 60 * SECOND
    everywhere(joined, compare_all)  # c learns here that it has a tombstone
    everywhere(joined, tombstone_gc.reap_all)
    assert [joined.record(peer, KEY) for peer in "abc"] == [None] * 3


@pytest.mark.parametrize("ttl", [None, 600 * SECOND])
def test_missed_touch_does_not_delay_horizon_and_is_repaired(
    joined: Joined, ttl: int | None
) -> None:
    before = joined.record("c", KEY)
    touch(joined, ttl)
    put_back(joined, "c", before)
    joined.now += 60 * SECOND
    agree(joined, joined.now - 30 * SECOND)
    assert min(horizons(joined)) > 0
    joined.now += 60 * SECOND
    everywhere(joined, compare_all)
    assert len({joined.record(peer, KEY) for peer in "abc"}) == 1
    assert joined.record("c", KEY) != before


def test_replicas_disagree_on_stamp_when_record_is_expired_on_one(joined: Joined) -> None:
    touch(joined, 5 * SECOND)
    before = joined.record("c", KEY)
    touch(joined, None)
    put_back(joined, "c", before)
    joined.now += 60 * SECOND
    agree(joined, joined.now - 30 * SECOND)
    assert horizons(joined) == [0, 0, 0]
    joined.now += 60 * SECOND
    everywhere(joined, compare_all)
    assert joined.lookup(KEY, level="all") == {KEY: "v"}


class TestPromises:
    """While a replica has promised to accept no write up to a stamp."""

    def promise(self, joined: Joined, stamp_ms: int) -> None:
        for core in joined.peers.values():
            core.local_partitions.promise(PARTITION, stamp_at(stamp_ms), joined.now)

    def test_touch_of_live_value_is_accepted(self, joined: Joined) -> None:
        self.promise(joined, joined.now)
        joined.now += 1
        began = joined.now
        assert touch(joined, 600 * SECOND).stored == 1
        assert joined.now == began

    def test_touch_that_expires_the_value_at_the_stamp_waits(self, joined: Joined) -> None:
        joined.now += 60 * SECOND
        self.promise(joined, joined.now)
        began = joined.now
        touch(joined, -30 * SECOND, at=joined.now - 40 * SECOND)
        assert joined.now - began >= SECOND

    def test_touch_waits_on_replica_without_the_write(self, joined: Joined) -> None:
        joined.forget("c", KEY)
        self.promise(joined, joined.now)
        began = joined.now
        touch(joined, None)
        assert joined.now - began >= SECOND


class TestHorizon:
    """Below a horizon, replicas have the same writes."""

    def pass_over(self, joined: Joined) -> None:
        for core in joined.peers.values():
            core.local_partitions.advance([PARTITION], stamp_at(joined.now))
        joined.now += SECOND

    def test_touch_of_live_value_is_accepted(self, joined: Joined) -> None:
        self.pass_over(joined)
        assert touch(joined, None).stored == 1
        assert joined.lookup(KEY, level="all") == {KEY: "v"}

    def test_touched_value_does_not_return_on_replica_without_the_write(
        self, joined: Joined
    ) -> None:
        self.pass_over(joined)
        joined.forget("c", KEY)
        result = touch(joined, None)
        assert result.outcomes
        assert joined.record("c", KEY) is None

    def test_touch_that_expires_the_value_below_horizon_is_refused(self, joined: Joined) -> None:
        joined.now += 60 * SECOND
        before = joined.record("a", KEY)
        self.pass_over(joined)
        touch(joined, -30 * SECOND, at=joined.now - 40 * SECOND)
        assert [joined.record(peer, KEY) for peer in "abc"] == [before] * 3

    def test_value_expired_below_horizon_is_not_touched(self, joined: Joined) -> None:
        touch(joined, SECOND)
        before = joined.record("a", KEY)
        read = open_for_touch(joined)
        joined.now += 60 * SECOND
        self.pass_over(joined)
        joined.run(read)
        assert [joined.record(peer, KEY) for peer in "abc"] == [before] * 3


def open_for_touch(joined: Joined) -> ApplyOperation:
    """Return a touch of the current value, stamped a minute later."""
    read = RecordOperation(
        joined.session, joined.now + 5000, "i", [KEY], Level.ALL, TYPES.decode_values
    )
    record = joined.run(read)[KEY]
    version = with_touch(record.version, stamp_at(joined.now + 61 * SECOND))
    content = build_record(b"i", KEY.encode(), record._replace(version=version, expiry=NEVER))
    items = [(KEY, KEY.encode(), content)]
    return ApplyOperation(joined.session, joined.now + 600 * SECOND, "i", Level.ALL, items)
