"""Replicas in one process whose tasks run to completion: real cores without network and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dstash.cluster.replication import handlers
from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.streaming import stream
from dstash.cluster.replication.tasks import Ask, Merge, Notify, Pause, Task
from dstash.cluster.replication.tombstone_gc import reap_all
from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.errors import DStashError, Unavailable
from dstash.store.interface import Write
from dstash.store.memory import TwinStore
from dstash.store.record import head, keyspace, partition_of
from dstash.store.sealing import seal
from dstash.version import WRITER_BYTES, Stamp, pack
from dstash.wire import codec
from dstash.wire.messages import Stored
from dstash.wire.replication import (
    BucketsRequest,
    CopyRequest,
    DigestsRequest,
    FloorRequest,
    Pull,
    Push,
    ReleaseFloor,
    SetHorizon,
    VersionsRequest,
)
from dstash.wire.shapes import Message

NOW = 1_700_000_000_000
KEY = b"key"
PARTITION = partition_of(KEY)


def take(local_partitions: LocalPartitions, question: Push, now: int) -> Task:
    """Store records, as a commit does."""
    yield Merge(codec.unpack_entries(question.keys, question.records))
    return Stored([], b"")


ANSWERS: dict[type, Callable[..., Any]] = {
    DigestsRequest: handlers.digests,
    CopyRequest: handlers.copy,
    VersionsRequest: handlers.versions,
    BucketsRequest: handlers.buckets,
    FloorRequest: handlers.floor,
    SetHorizon: handlers.horizon,
    ReleaseFloor: handlers.release,
    Pull: handlers.pull,
    Push: take,
}


def clock_of(name: str) -> ClusterClock:
    """Return a clock that does not need the clocks of others."""
    clock = ClusterClock(name, 500, lambda: 0, NOW)
    clock.install({name}, {name}, frozenset((name,)), 1)
    return clock


class Cluster:
    """Peers a, b and c, each a replica of every partition, and d, which joins if ``joins``."""

    def __init__(self, *, joins: bool = True) -> None:
        self.asked: Counter[type] = Counter()
        self.compared = 0
        #: Milliseconds until a peer answers.
        self.delay = 0
        #: Milliseconds by which pauses exceed the requested time.
        self.late = 0
        self.now = NOW
        members = tuple(Member(peer, f"tcp://{peer}:1", f"store-{peer}", peer) for peer in "abc")
        before = Topology("test", "id", 1, 3, formed=True, members=members)
        joiner = Announcement("d", "tcp://d:1", "store-d", "d", 1.0)
        topology = transitions.add(before, [joiner]) if joins else before
        self.view = View(topology, frozenset("abcd"))
        #: Kinds of messages that a peer does not answer, as if it were gone.
        self.unanswered: set[tuple[str, type]] = set()
        self.peers = {
            name: Replica(
                name,
                LocalPartitions(TwinStore(f"store-{name}")),
                lambda: self.view,
                lambda: self.now,
                lambda: self.now,
                clock_of(name),
            )
            for name in "abcd"
        }

    def limit(self, rate: int) -> None:
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
        local_partitions = self.peers[peer].local_partitions
        write = Write(merge.entries, NOW, 0, merge.drops, local_partitions.horizons[:], merge.marks)
        local_partitions.store.commit([write])
        local_partitions.changed([PARTITION], self.now)

    def records(self, peer: str) -> int:
        return len(self.peers[peer].local_partitions.walk(PARTITION))

    def run(self, peer: str, task: Task) -> Any:
        reply: Any = None
        while True:
            try:
                failed = isinstance(reply, DStashError)
                effect = task.throw(reply) if failed else task.send(reply)
            except StopIteration as stop:
                return stop.value
            reply = None
            if isinstance(effect, Merge):
                try:
                    self.commit(peer, effect)
                except DStashError as error:
                    reply = error
            elif isinstance(effect, Pause):
                self.now += effect.milliseconds + (self.late if effect.milliseconds else 0)
            elif isinstance(effect, Ask):
                reply = self.ask(effect.peer, effect.message)
            elif isinstance(effect, Notify):
                self.ask(effect.peer, effect.message)

    def ask(self, peer: str, message: Message) -> Any:
        if (peer, type(message)) in self.unanswered:
            return Unavailable(f"{peer} is not connected")
        self.asked[type(message)] += 1
        self.now += self.delay
        if isinstance(message, DigestsRequest):
            self.compared += not message.skip_all
        task = ANSWERS[type(message)](self.peers[peer].local_partitions, message, self.now)
        try:
            return self.run(peer, task)
        except DStashError as error:
            return error

    def stream(self, peer: str) -> list[int]:
        done: list[int] = []
        self.run(peer, stream(self.peers[peer], [PARTITION], done.append))
        return done

    def set_horizon(self, stamp: Stamp, peers: str = "abc") -> None:
        """Set the horizon on replicas, and drop the tombstones up to it."""
        for peer in peers:
            local_partitions = self.peers[peer].local_partitions
            self.run(peer, local_partitions.digests.of(PARTITION))  # finds expirable records
            self.commit(peer, Merge(marks=[local_partitions.advance([PARTITION], stamp)]))
            self.run(peer, reap_all(self.peers[peer]))
