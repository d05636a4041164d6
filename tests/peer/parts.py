"""The parts of a peer that its requests need, without a core: a store, a clock, a view."""

from __future__ import annotations

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.peer.admission.requests import Request
from dstash.store.memory import TwinStore
from dstash.wire.envelope import Envelope
from dstash.wire.shapes import Message

NOW = 1_700_000_000_000
EPOCH = 5


def view_of(names: str = "abc", epoch: int = EPOCH) -> View:
    """Return a view of a formed cluster, whose members are alive."""
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", name) for name in names)
    return View(Topology("c", "id", epoch, formed=True, members=members), frozenset(names))


def request(message: Message, size: int = 100) -> Request:
    """Return a request as it arrives."""
    return Request(b"sender", None, Envelope(7, EPOCH, 0, message), NOW, size)


class Parts:
    """The store, the partitions and the clock of peer ``a``, which knows the other clocks."""

    def __init__(self, *, knows_clocks: bool = True) -> None:
        self.store = TwinStore("store-a")
        self.partitions = LocalPartitions(self.store, 100, NOW)
        self.clock = ClusterClock("a", 500, lambda: self.partitions.present, NOW)
        self.view = view_of()
        self.clock.install(self.view.members.keys(), set("abc"), self.view.alive, 2)
        if knows_clocks:
            for correlation, peer in enumerate("bc"):
                self.clock.sent(correlation)
                self.clock.answered(peer, correlation, NOW)
