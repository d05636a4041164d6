"""Admin requests: a lost reply never leads to a second request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.client.operations.admin import AdminOperation, shows
from dstash.client.session import Send, Session
from dstash.cluster.topology import transitions
from dstash.cluster.topology.topology import Member, Topology
from dstash.errors import ChangeConflict, DStashError, NotReady, TimedOut, Unavailable
from dstash.wire.envelope import Envelope
from dstash.wire.envelope import decode as decode_message
from dstash.wire.messages import AdminReply, AdminRequest, Error, TopologyReply, TopologyRequest
from dstash.wire.shapes import Message

NAMES = ("a", "b", "c", "d")
NOW = 1_000_000


def cluster() -> Topology:
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", name) for name in NAMES)
    return Topology("test", "id", 7, 3, formed=True, members=members)


class Exchange:
    """An admin request, and peers that reply as the test decides.

    All of them are asked for the topology first; ``chosen`` answers, and gets the request.
    """

    def __init__(self, request: AdminRequest, chosen: str = "a") -> None:
        self.session = Session(lambda: NOW)
        self.session.install(cluster().encode(), list(NAMES))
        self.operation = AdminOperation(self.session, NOW + 5000, request)
        self.sent = self.operation.more(NOW)
        assert self.operation.more(NOW) == []
        if chosen:
            self.choose(chosen)

    def choose(self, peer: str) -> None:
        """Answer the request for the topology of one peer."""
        place = next(place for place, send in enumerate(self.sent) if send.peer == peer)
        assert self.message(place) == TopologyRequest()
        asked, self.sent = self.sent[place], []
        reply = Envelope(asked.correlation, 7, 0, TopologyReply(cluster().encode(), list(NAMES)))
        self._take(self.operation.receive(peer, reply, NOW))

    def message(self, place: int = 0) -> Message:
        return decode_message(self.sent[place].frames).message

    def answer(self, message: Message) -> None:
        """Answer the first request that was sent."""
        send = self.sent.pop(0)
        envelope = Envelope(send.correlation, 7, 0, message)
        self._take(self.operation.receive(send.peer, envelope, NOW))

    def lose(self) -> None:
        """Break the connection of the first request that was sent."""
        self._take(self.operation.lost(self.sent.pop(0).peer, NOW))

    def later(self, milliseconds: int) -> None:
        self._take(self.operation.tick(NOW + milliseconds))

    def _take(self, more: list[Send]) -> None:
        self.sent += more


def test_admin_request_returns_resulting_topology() -> None:
    exchange = Exchange(AdminRequest("remove", ["d"]))
    assert exchange.message() == AdminRequest("remove", ["d"])
    begun = transitions.remove(cluster(), ["d"])
    exchange.answer(AdminReply(begun.encode()))
    assert exchange.operation.done
    assert exchange.operation.result() == begun
    assert exchange.session.epoch == begun.epoch


def test_dry_run_does_not_change_view() -> None:
    exchange = Exchange(AdminRequest("remove", ["d"], dry=True))
    exchange.answer(AdminReply(transitions.remove(cluster(), ["d"]).encode()))
    assert exchange.operation.result().change is not None
    assert exchange.session.epoch == 7


@pytest.mark.parametrize("error", [NotReady("starting"), Unavailable("gone")])
def test_request_without_effect_is_sent_to_another_peer(error: DStashError) -> None:
    exchange = Exchange(AdminRequest("remove", ["d"], dry=isinstance(error, Unavailable)))
    first = exchange.sent[0].peer
    exchange.answer(Error.of(error))
    assert first not in [send.peer for send in exchange.sent]
    exchange.choose("c")
    assert isinstance(exchange.message(), AdminRequest)
    assert exchange.sent[0].peer == "c"


def test_request_is_sent_only_to_a_peer_that_answers() -> None:
    exchange = Exchange(AdminRequest("remove", ["a"]), chosen="")
    assert [send.peer for send in exchange.sent] == list(NAMES)
    exchange.later(1000)  # none has answered so far
    assert not any(
        isinstance(exchange.message(place), AdminRequest) for place in range(len(exchange.sent))
    )
    exchange.choose("c")
    assert [send.peer for send in exchange.sent] == ["c"]
    assert isinstance(exchange.message(), AdminRequest)


def test_request_without_a_peer_that_answers_is_not_sent() -> None:
    exchange = Exchange(AdminRequest("pause", []), chosen="")
    exchange.later(6000)
    with pytest.raises(TimedOut, match="no answer in time"):
        exchange.operation.result()


def test_peer_that_is_not_alive_is_chosen_only_if_the_others_are_silent() -> None:
    session = Session(lambda: NOW)
    session.install(cluster().encode(), ["b", "c", "d"])
    operation = AdminOperation(session, NOW + 5000, AdminRequest("pause", []))
    last = operation.more(NOW)[-1]
    assert last.peer == "a"
    reply = Envelope(last.correlation, 7, 0, TopologyReply(cluster().encode(), ["b", "c", "d"]))
    assert operation.receive("a", reply, NOW) == []
    requests = [
        send
        for send in operation.tick(NOW + 1000)
        if isinstance(decode_message(send.frames).message, AdminRequest)
    ]
    assert [send.peer for send in requests] == ["a"]


def test_conflict_is_raised_at_once() -> None:
    exchange = Exchange(AdminRequest("pause", []))
    exchange.answer(Error.of(ChangeConflict("no topology change is running")))
    assert exchange.operation.done
    with pytest.raises(ChangeConflict):
        exchange.operation.result()


def test_lost_reply_is_resolved_from_topology() -> None:
    exchange = Exchange(AdminRequest("remove", ["d"]))
    exchange.lose()
    assert {type(exchange.message(place)) for place in range(len(exchange.sent))} == {
        TopologyRequest
    }
    exchange.answer(TopologyReply(transitions.remove(cluster(), ["d"]).encode(), list(NAMES)))
    assert exchange.operation.done
    assert exchange.operation.result().change is not None


def test_lost_reply_times_out_when_topology_does_not_show_the_change() -> None:
    exchange = Exchange(AdminRequest("remove", ["d"]))
    exchange.lose()
    exchange.answer(TopologyReply(cluster().encode(), list(NAMES)))
    exchange.sent.clear()
    exchange.later(1000)
    asked = {type(exchange.message(place)) for place in range(len(exchange.sent))}
    assert TopologyRequest in asked
    assert AdminRequest not in asked
    exchange.later(6000)
    with pytest.raises(TimedOut, match="may or may not"):
        exchange.operation.result()


def test_shows_compares_topology_with_admin_request() -> None:
    calm = cluster()
    leaving = transitions.remove(calm, ["d"])
    paused = transitions.steer(leaving, paused=True, rate=5)
    assert shows(leaving, AdminRequest("remove", ["d"]), 7)
    assert shows(calm.without("d"), AdminRequest("remove", ["d"]), 7)
    assert not shows(calm, AdminRequest("remove", ["d"]), 7)
    assert shows(calm, AdminRequest("add", ["a"]), 7)
    assert not shows(calm, AdminRequest("add", ["e"]), 7)
    assert shows(leaving, AdminRequest("replace", ["d", "a"]), 7)
    assert not shows(calm, AdminRequest("replace", ["d", "a"]), 7)
    assert shows(calm, AdminRequest("cancel", []), 7)
    assert not shows(leaving, AdminRequest("cancel", []), 7)
    assert shows(paused, AdminRequest("pause", []), 7)
    assert not shows(paused, AdminRequest("resume", []), 7)
    assert shows(paused, AdminRequest("rate", [], rate=5), 7)
    assert not shows(replace(paused, change=None), AdminRequest("rate", [], rate=5), 7)
    lowered = transitions.lower_floors(calm, dict.fromkeys(NAMES), 1)
    assert shows(lowered, AdminRequest("lower-floors", []), 7)
    assert not shows(lowered, AdminRequest("lower-floors", []), lowered.epoch)
    assert not shows(calm, AdminRequest("lower-floors", []), 7)
