"""Control requests: answered in any state of the cluster, or refused with the reason."""

from __future__ import annotations

import pytest

from dstash.errors import NotReady, VersionMismatch, WrongCluster
from dstash.limits import CLOCK_SKEW_LIMIT
from dstash.peer.assembly import Handlers, Services, Settings, SharedState
from dstash.store.memory import TwinStore
from dstash.wire.messages import (
    Compact,
    Hello,
    Lookup,
    Ping,
    Pong,
    Repair,
    StatusReply,
    StatusRequest,
    TopologyReply,
    TopologyRequest,
    Welcome,
)
from dstash.wire.replication import ClockReply, ClockRequest
from dstash.wire.shapes import Frame, Message
from tests.peer.parts import NOW, view_of


class Peer:
    """The control requests of peer ``a``, which has no view yet."""

    def __init__(self) -> None:
        settings = Settings("a", "c", max_clock_skew_ms=700)
        self.state = SharedState(settings, TwinStore("store-a"), NOW)
        self.services = Services(settings, self.state, NOW)
        self.control = Handlers(settings, self.state, self.services).control

    def join(self) -> None:
        view = view_of()
        self.services.health.not_ready = None
        self.services.admission.install(view)
        self.services.background.install(view, NOW)
        self.control.install(view)

    def ask(self, message: Message) -> Message | None:
        return self.control.answer(message, NOW)


@pytest.fixture
def peer() -> Peer:
    return Peer()


def test_ping_and_status_are_answered_without_a_view(peer: Peer) -> None:
    assert peer.ask(Ping()) == Pong()
    status = peer.ask(StatusRequest())
    assert isinstance(status, StatusReply)
    assert status.status["why_not_ready"] == "the peer is starting"


@pytest.mark.parametrize("message", [Hello("c"), TopologyRequest(), ClockRequest(), Repair()])
def test_other_requests_are_refused_without_a_view(peer: Peer, message: Message) -> None:
    with pytest.raises(NotReady, match="a: the peer is starting"):
        peer.ask(message)


def test_compaction_is_ordered_and_its_state_returned(peer: Peer) -> None:
    with pytest.raises(NotReady, match="the peer is starting"):
        peer.ask(Compact())
    orders: list[str] = []
    peer.services.health.order_compaction = lambda: orders.append("ordered")
    peer.services.health.describe_compaction = lambda: {"running": bool(orders)}
    reply = peer.ask(Compact())
    assert isinstance(reply, StatusReply)
    assert orders == ["ordered"]
    assert reply.status["compaction"] == {"running": True}
    peer.services.health.stopping = True
    with pytest.raises(NotReady, match="is stopping"):
        peer.ask(Compact())
    assert orders == ["ordered"]


def test_hello_is_answered_with_the_topology_and_the_limits(peer: Peer) -> None:
    peer.join()
    welcome = peer.ask(Hello("c"))
    assert isinstance(welcome, Welcome)
    assert (welcome.cluster, welcome.peer, welcome.alive) == ("c", "a", ["a", "b", "c"])
    assert welcome.limits[CLOCK_SKEW_LIMIT] == 700
    topology = peer.ask(TopologyRequest())
    assert isinstance(topology, TopologyReply)
    assert topology.topology == welcome.topology == view_of().topology.encode()


def test_hello_to_another_cluster_or_version_is_refused(peer: Peer) -> None:
    peer.join()
    with pytest.raises(WrongCluster):
        peer.ask(Hello("other"))
    with pytest.raises(VersionMismatch):
        peer.ask(Hello("c", lowest=100, highest=101))


def test_clock_is_not_shown_before_freshness_is_confirmed(peer: Peer) -> None:
    peer.join()
    with pytest.raises(NotReady):
        peer.ask(ClockRequest())
    peer.state.local_partitions.freshness_confirmed = True
    answer = peer.ask(ClockRequest())
    assert isinstance(answer, ClockReply)
    assert answer.clock == NOW


def test_other_messages_are_no_control_requests(peer: Peer) -> None:
    assert peer.ask(Lookup("i", 1, Frame(b"\x90"))) is None
