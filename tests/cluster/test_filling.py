"""Filling a peer: from enough sources, and without bringing back what was buried meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from dstash.cluster import answering, changing
from dstash.cluster.answering import pack_partitions
from dstash.cluster.antientropy import _differing
from dstash.cluster.burying import bury_all, vacate
from dstash.cluster.filling import _compare, _copy_all, fill, sources
from dstash.cluster.holdings import Holdings
from dstash.cluster.membership import Announcement
from dstash.cluster.replica import Replica
from dstash.cluster.tasks import Ask, Merge, Pause, Task
from dstash.cluster.topology import Member, Topology
from dstash.cluster.view import View
from dstash.errors import ProtocolError
from dstash.limits import MIB
from dstash.store.interface import Write
from dstash.store.record import head, keyspace, partition_of, seal
from dstash.store.twin import TwinStore
from dstash.types import RecordFlag
from dstash.version import WRITER_BYTES, Stamp, pack, stamp_at
from dstash.wire.replication import AskCopy, AskDigests, AskVersions, Pull
from dstash.wire.shapes import Message

NOW = 1_700_000_000_000
KEY = b"key"
PARTITION = partition_of(KEY)
PAST = stamp_at(NOW - 60_000)
_ANSWERS: dict[type, Callable[..., Any]] = {
    AskDigests: answering.digests,
    AskCopy: answering.copy,
    AskVersions: answering.versions,
    Pull: answering.pull,
}


class Cluster:
    """Peers a, b, c that hold everything, and d that is added. Tasks run to their end at once."""

    def __init__(self) -> None:
        self.asked: Counter[type] = Counter()
        self.compared = 0
        #: What it takes (milliseconds) to answer.
        self.delay = 0
        self.now = NOW
        members = tuple(Member(one, f"tcp://{one}:1", f"store-{one}", one) for one in "abc")
        before = Topology("test", "id", 1, 3, formed=True, members=members)
        joiner = Announcement("d", "tcp://d:1", "store-d", "d", 1.0)
        self.view = View(changing.add(before, [joiner]), frozenset("abcd"))
        self.peers = {
            name: Replica(
                name,
                Holdings(TwinStore(f"store-{name}")),
                lambda: self.view,
                lambda: self.now,
                lambda: self.now,
            )
            for name in "abcd"
        }

    def order(self, rate: int) -> None:
        topology = self.view.topology
        assert topology.change is not None
        change = replace(topology.change, rate=rate)
        self.view = View(replace(topology, change=change), self.view.alive)

    def write(self, peer: str, stamp: Stamp, *, flags: int = 0) -> None:
        version = pack(stamp, bytes(WRITER_BYTES))
        space = keyspace(b"index", frozenset(range(4096)))
        entries = seal(space, [KEY], head(version, flags), [b"" if flags else b"\x01"])
        self.commit(peer, Merge(entries))

    def commit(self, peer: str, merge: Merge) -> None:
        holdings = self.peers[peer].holdings
        write = Write(merge.entries, NOW, 0, merge.drops, holdings.horizons[:], merge.marks)
        holdings.store.commit([write])
        holdings.changed([PARTITION], NOW)

    def records(self, peer: str) -> int:
        return len(self.peers[peer].holdings.walk(PARTITION))

    def run(self, peer: str, task: Task) -> Any:
        reply: Any = None
        while True:
            try:
                effect = task.send(reply)
            except StopIteration as stop:
                return stop.value
            reply = None
            if isinstance(effect, Merge):
                self.commit(peer, effect)
            elif isinstance(effect, Pause):
                self.now += effect.milliseconds
            elif isinstance(effect, Ask):
                reply = self.ask(effect.peer, effect.message)

    def ask(self, peer: str, message: Message) -> Any:
        self.asked[type(message)] += 1
        self.now += self.delay
        if isinstance(message, AskDigests):
            self.compared += not message.skip_all
        return self.run(peer, _ANSWERS[type(message)](self.peers[peer].holdings, message, NOW))

    def fill(self, peer: str) -> list[int]:
        done: list[int] = []
        self.run(peer, fill(self.peers[peer], [PARTITION], done.append))
        return done

    def bury(self, stamp: Stamp) -> None:
        """Have all replicas agree on the past, and drop the dead."""
        for peer in "abc":
            holdings = self.peers[peer].holdings
            self.run(peer, holdings.digest(PARTITION))  # learns that there are mortals
            self.commit(peer, Merge(marks=[holdings.advance([PARTITION], stamp)]))
            self.run(peer, bury_all(self.peers[peer]))


def test_a_write_that_one_replica_missed_is_filled_in() -> None:
    for missed_by in "abc":
        cluster = Cluster()
        for peer in set("abc") - {missed_by}:
            cluster.write(peer, stamp_at(NOW))
        assert cluster.fill("d") == [PARTITION]
        assert cluster.records("d") == 1


def test_only_what_is_here_already_is_compared() -> None:
    cluster = Cluster()
    assert cluster.fill("d") == [PARTITION]
    assert (cluster.asked[AskCopy], cluster.compared) == (0, 0), "there is nothing"
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW))
    assert cluster.fill("d") == [PARTITION]
    assert (cluster.asked[AskCopy], cluster.compared) == (1, 1), "from one, then another"
    assert cluster.fill("d") == [PARTITION]
    assert (cluster.asked[AskCopy], cluster.compared) == (1, 3)


@pytest.mark.parametrize("told", ["digest", "flag"])
def test_a_source_that_does_not_know_the_count_is_not_taken_for_empty(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW))

    def earlier(holdings: Holdings, question: AskDigests, now: int) -> Any:
        answer = yield from answering.digests(holdings, AskDigests(question.partitions), now)
        known = {"digests": bytes(16)} if told == "flag" else {}
        return replace(answer, counts=bytes(4), busy=bytes([told == "flag"]), **known)

    monkeypatch.setitem(_ANSWERS, AskDigests, earlier)
    cluster.run("d", _copy_all(cluster.peers["d"], [PARTITION], "a"))
    assert cluster.records("d") == 1


@pytest.mark.parametrize("flags", [b"", b"\0\0"])
def test_an_answer_with_another_number_of_flags_is_refused(
    flags: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uneven(holdings: Holdings, question: AskDigests, now: int) -> Any:
        answer = yield from answering.digests(holdings, question, now)
        return replace(answer, busy=flags)

    cluster = Cluster()
    monkeypatch.setitem(_ANSWERS, AskDigests, uneven)
    replica, question = cluster.peers["d"], AskDigests(pack_partitions([PARTITION]))
    for task in (
        _copy_all(replica, [PARTITION], "a"),
        _compare(replica, [PARTITION], "a", set()),
        _differing(replica, "a", question),
    ):
        with pytest.raises(ProtocolError, match="number of flags"):
            cluster.run("d", task)


def hold_400_kilobytes(cluster: Cluster) -> int:
    """Give a, b and c some records; returns how many."""
    keys = [key for n in range(200_000) if partition_of(key := b"%d" % n) == PARTITION][:40]
    space = keyspace(b"index", frozenset([PARTITION]))
    version = pack(stamp_at(NOW), bytes(WRITER_BYTES))
    entries = seal(space, keys, head(version), [b"\xda\x27\x10" + bytes(10_000)] * len(keys))
    for peer in "abc":
        cluster.commit(peer, Merge(entries))
    return len(keys)


@pytest.mark.parametrize(
    ("rate", "delay", "pages"),
    [(0, 0, 9), (32 * MIB, 0, 9), (32 * MIB + 1, 0, 1), (0, 6, 5), (0, 100, 3), (MIB, 90, 9)],
)
def test_pages_are_small_unless_that_is_too_little_for_the_rate(
    rate: int, delay: int, pages: int
) -> None:
    cluster = Cluster()
    records = hold_400_kilobytes(cluster)
    cluster.delay = delay
    cluster.order(rate)
    assert cluster.fill("d") == [PARTITION]
    assert cluster.records("d") == records
    assert cluster.asked[AskCopy] == pages


@pytest.mark.parametrize("delay", [0, 20])
def test_a_page_that_took_its_time_is_not_waited_for_again(delay: int) -> None:
    cluster = Cluster()
    hold_400_kilobytes(cluster)
    cluster.delay = delay
    cluster.order(1_000_000)
    cluster.fill("d")
    assert 750 < cluster.now - NOW < 900, "each of two fillers has half of the rate"


def test_so_many_sources_are_needed_that_no_write_can_be_missed() -> None:
    cluster = Cluster()
    able, needed = sources(cluster.peers["d"], PARTITION)
    assert (sorted(able), needed) == (["a", "b", "c"], 2)
    able, needed = sources(cluster.peers["a"], PARTITION)  # one of them is itself
    assert (sorted(able), needed) == (["b", "c"], 1)


@pytest.mark.parametrize("done", range(4))
def test_a_partition_that_comes_back_while_it_is_dropped_is_filled(done: int) -> None:
    cluster = Cluster()
    for peer in "abcd":  # d has lost the partition in the change before
        cluster.write(peer, stamp_at(NOW - 90_000))
        cluster.commit(peer, Merge(marks=[cluster.peers[peer].holdings.advance([PARTITION], PAST)]))
    vacating = vacate(cluster.peers["d"], [PARTITION])
    for effect in islice(vacating, done):
        assert isinstance(effect, Merge)
        cluster.commit("d", effect)
    vacating.close()
    assert cluster.fill("d") == [PARTITION]
    assert cluster.records("d") == 1
    assert cluster.peers["d"].holdings.horizons[PARTITION] == PAST


@pytest.mark.parametrize("keeps_another", [False, True])
def test_what_was_deleted_and_buried_meanwhile_does_not_come_back(keeps_another: bool) -> None:
    cluster = Cluster()
    for peer in "abcd":  # d held the partition once, and was not cleared since
        cluster.write(peer, stamp_at(NOW - 90_000))
    for peer in "abc":
        cluster.write(peer, stamp_at(NOW - 80_000), flags=RecordFlag.TOMBSTONE)
    cluster.bury(stamp_at(NOW - 60_000))
    assert [cluster.records(peer) for peer in "abcd"] == [0, 0, 0, 1]
    if keeps_another:
        for peer in "abc":
            cluster.write(peer, stamp_at(NOW - 1000))
    assert cluster.fill("d") == [PARTITION]
    assert cluster.records("d") == int(keeps_another)
    # And it does not come in by another way: the horizon came along.
    cluster.write("d", stamp_at(NOW - 90_000))
    assert cluster.records("d") == int(keeps_another)
