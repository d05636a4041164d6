"""Tests of the digests that replicas compare: those that are known take a shorter way."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

import pytest

from dstash.cluster.repair.antientropy import compare_with
from dstash.cluster.replication.digests.digests import Digests
from dstash.cluster.replication.digests.recent_replies import RecentReplies
from dstash.cluster.replication.handlers import PARTITIONS_PER_STEP, digests
from dstash.cluster.replication.partitions import BUSY_MS, LocalPartitions
from dstash.cluster.replication.tasks import Effect, Pause, Settle
from dstash.cluster.topology.drops import Drop
from dstash.limits import PARTITIONS
from dstash.store.interface import Write
from dstash.store.memory import TwinStore
from dstash.store.record import head, keyspace, partition_in
from dstash.store.sealing import seal
from dstash.version import pack, stamp_at
from dstash.wire.packing import BUSY, CORRUPT, pack_partitions
from dstash.wire.replication import DigestsReply, DigestsRequest
from dstash.wire.shapes import Message
from tests.cluster.virtual import PARTITION, Cluster

NOW = 1_700_000_000_000
SPACE = keyspace(b"i", frozenset(range(PARTITIONS)))
ALL = DigestsRequest(pack_partitions(range(PARTITIONS)), skip_busy=True, kind=1)
FIELDS = ("digests", "busy", "counts", "horizons")


def reply_of(
    local_partitions: LocalPartitions, request: DigestsRequest
) -> tuple[DigestsReply, int]:
    """Return the reply to a request, and how often the task paused."""
    replies: list[Message] = []

    def run() -> Generator[Effect, Any, None]:
        replies.append((yield from digests(local_partitions, request, NOW)))

    effects = list(run())
    assert effects.pop(0) == Settle()
    [reply] = replies
    assert isinstance(reply, DigestsReply)
    return reply, effects.count(Pause())


@pytest.fixture(params=range(3))
def local_partitions(request: pytest.FixtureRequest) -> LocalPartitions:
    """Partitions with records, corrupt records, horizons, digests that are known, and changes."""
    rng = random.Random(request.param)
    store = TwinStore()
    keys = [b"%d" % number for number in range(1500)]
    entries = seal(SPACE, keys, head(pack(4, b"test")), [b"\1"] * len(keys))
    store.commit([Write(entries, NOW)])
    for key, record in rng.sample(entries, 3):
        store.records[key] = record[:-1] + b"\2"
    made = LocalPartitions(store)
    for number in range(0, PARTITIONS, 7):
        made.horizons[number] = number
    known = range(1024, 4096) if request.param else range(PARTITIONS)
    reply_of(made, DigestsRequest(pack_partitions(known), kind=1))
    changed = rng.sample(range(PARTITIONS), 40)
    made.changed(changed[:20], NOW - 1)
    made.changed(changed[20:], NOW - 10**9)
    return made


@pytest.mark.parametrize("skip_busy", [True, False])
def test_reply_for_many_partitions_is_that_for_each(
    local_partitions: LocalPartitions, skip_busy: bool
) -> None:
    request = DigestsRequest(pack_partitions(range(PARTITIONS)), skip_busy, kind=1)
    first, _ = reply_of(local_partitions, request)
    second, pauses = reply_of(local_partitions, request)
    single = [
        reply_of(local_partitions, DigestsRequest(pack_partitions([number]), skip_busy, kind=1))[0]
        for number in range(PARTITIONS)
    ]
    expected: list[Any] = [b"".join(getattr(part, name) for part in single) for name in FIELDS]
    for whole in (first, second):
        assert [getattr(whole, name) for name in FIELDS] == expected
    assert first.busy.count(CORRUPT) == 3
    assert first.busy.count(BUSY) == (20 if skip_busy else 0)
    assert pauses >= PARTITIONS // PARTITIONS_PER_STEP, "requests are served in between"


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_reply_has_as_many_digests_as_the_request_has_partitions(count: int) -> None:
    reply, pauses = reply_of(
        LocalPartitions(TwinStore()), DigestsRequest(pack_partitions(range(count)))
    )
    assert [len(getattr(reply, name)) for name in FIELDS] == [
        16 * count,
        count,
        4 * count,
        8 * count,
    ]
    assert pauses >= count // PARTITIONS_PER_STEP


def test_comparison_notes_partitions_that_differ_and_those_that_are_equal() -> None:
    cluster = Cluster(joins=False)
    replica = cluster.peers["a"]
    cluster.run("a", compare_with(replica, "b"))
    before = replica.compared
    assert before == PARTITIONS // 2, "the lower id begins for even partitions"
    cluster.write("b", stamp_at(NOW))
    starts = replica if PARTITION % 2 == 0 else cluster.peers["b"]
    other = "b" if starts is replica else "a"
    cluster.now += BUSY_MS
    cluster.run(starts.me, compare_with(starts, other))
    assert (starts.differed, starts.differing.describe(cluster.now)["differing"]) == (1, 1)
    cluster.now += BUSY_MS
    cluster.run(starts.me, compare_with(starts, other))
    assert (starts.differed, starts.differing.describe(cluster.now)["differing"]) == (1, 0)
    compared_at = starts.local_partitions.compared_at(other, cluster.now)
    assert set(compared_at[PARTITION % 2 :: 2]) == {cluster.now}


class TestRecentReplies:
    """A reply is given again for as long as it is true, and no longer."""

    @pytest.fixture
    def known(self) -> LocalPartitions:
        store = TwinStore()
        keys = [b"%d" % number for number in range(300)]
        store.commit([Write(seal(SPACE, keys, head(pack(4, b"test")), [b"\1"] * 300), NOW)])
        made = LocalPartitions(store)
        reply_of(made, ALL)
        return made

    def test_reply_is_given_again_while_nothing_changes(self, known: LocalPartitions) -> None:
        first, _ = reply_of(known, ALL)
        assert reply_of(known, ALL) == (first, 0)
        assert reply_of(known, ALL)[0] is first

    @pytest.mark.parametrize(
        "change",
        [
            lambda local: local.changed([7], NOW - 10**9),
            lambda local: local.changed_keys([b"\0\7\1ikey"], NOW - 10**9),
            lambda local: local.advance([7], 9),
            lambda local: local.pushed(NOW),
            lambda local: local.corruption.report([b"\0\7\1ikey"]),
            lambda local: local.install_drops((Drop("i", "", 9, 1),)),
            lambda local: _scrub_corrupt(local),
        ],
    )
    def test_reply_is_made_again_after_a_change(
        self, known: LocalPartitions, change: Callable[[LocalPartitions], object]
    ) -> None:
        first, _ = reply_of(known, ALL)
        change(known)
        second, _ = reply_of(known, ALL)
        assert second is not first
        known.recent_replies = RecentReplies(lambda now: None)
        assert reply_of(known, ALL)[0] == second

    def test_reply_is_not_kept_if_something_changes_while_it_is_made(
        self, known: LocalPartitions
    ) -> None:
        known.recent_replies = RecentReplies(known.unchanged_since)
        task = digests(known, ALL, NOW)
        assert [next(task) for _ in range(3)] == [Settle(), Pause(), Pause()]
        known.changed([7], NOW - 10**9)
        before = b""
        try:
            while True:
                next(task)
        except StopIteration as stop:
            before = stop.value
        assert reply_of(known, ALL)[0] is not before

    def test_scrub_that_finds_nothing_changes_nothing(self, known: LocalPartitions) -> None:
        first, _ = reply_of(known, ALL)
        list(known.digests.scrub(7))
        assert reply_of(known, ALL)[0] is first

    def test_equal_reply_of_another_peer_is_compared_once(
        self, known: LocalPartitions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster = Cluster(joins=False)
        replica = cluster.peers["a"]
        for peer in "ab":
            cluster.run(peer, compare_with(cluster.peers[peer], "a" if peer == "b" else "b"))
        cluster.run("a", compare_with(replica, "b"))
        looked: list[int] = []
        known_digests = Digests.known

        def counted(self: Digests, partitions: Any, kind: Any) -> Any:
            looked.append(len(partitions))
            return known_digests(self, partitions, kind)

        monkeypatch.setattr(Digests, "known", counted)
        compared = replica.compared
        cluster.now += 5000
        cluster.run("a", compare_with(replica, "b"))
        assert (looked, replica.compared) == ([], compared + PARTITIONS // 2)
        assert set(replica.local_partitions.compared_at("b", cluster.now)[0::2]) == {cluster.now}

    def test_new_reply_of_another_peer_is_compared(self) -> None:
        cluster = Cluster(joins=False)
        first, other = ("a", "b") if PARTITION % 2 == 0 else ("b", "a")
        replica = cluster.peers[first]
        for _ in range(2):
            cluster.run(first, compare_with(replica, other))
        cluster.write(other, stamp_at(NOW))
        cluster.now += BUSY_MS
        cluster.run(first, compare_with(replica, other))
        assert replica.differed == 1

    def test_reply_that_leaves_out_busy_partitions_is_not_given_again(
        self, known: LocalPartitions
    ) -> None:
        known.changed([7], NOW - 1)
        busy, _ = reply_of(known, ALL)
        assert busy.busy.count(BUSY) == 1
        known.changed([7], NOW - BUSY_MS)
        known.digests.generation -= 1  # only time has passed
        assert reply_of(known, ALL)[0].busy.count(BUSY) == 0


def _scrub_corrupt(local: LocalPartitions) -> None:
    """Corrupt a record on the disk, and let a scrub find it; only the digest shows it then."""
    store = local.store
    assert isinstance(store, TwinStore)
    key, record = next(iter(store.records.items()))
    store.records[key] = record[:-1] + b"\2"
    list(local.digests.scrub(partition_in(key)))
    local.corruption.forget([key])
