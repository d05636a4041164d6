"""Requests that a peer sends to other members while its dashboard is open."""

from __future__ import annotations

from dstash.cluster.replication.tasks import Outgoing, Scheduler
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.peer.telemetry.history import Sample, pack_samples
from dstash.peer.telemetry.observer import Observer
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import StatusReply, StatusRequest
from dstash.wire.replication import HistoryReply, HistoryRequest
from dstash.wire.shapes import Message

NOW = 1_700_000_000_000
MEMBERS = tuple(Member(name, f"tcp://{name}:1", "store", name) for name in "abc")
VIEW = View(Topology("dstash", "id", 1, formed=True, members=MEMBERS), frozenset("abc"))


class Bench:
    """An observer and its requests."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(lambda merge, done: None, lambda done: None, lambda: 1)
        self.observer = Observer("a", self.scheduler)

    def tick(self, now: int) -> list[Outgoing]:
        self.observer.tick(VIEW, now)
        return self.scheduler.tick(now)

    def answer(self, outgoing: Outgoing, message: Message, now: int) -> list[Outgoing]:
        self.scheduler.answered(outgoing.peer, Envelope(outgoing.correlation, 1, now, message))
        return self.tick(now)


def _asked(outgoing: list[Outgoing]) -> dict[str, Message]:
    return {request.peer: decode(request.frames).message for request in outgoing}


def test_observer_sends_no_request_unless_watched() -> None:
    bench = Bench()
    assert bench.tick(NOW) == []
    bench.observer.watch(NOW)
    assert _asked(bench.tick(NOW)) == {"b": StatusRequest(), "c": StatusRequest()}
    assert bench.tick(NOW + 4000) == [], "the last look is long ago"


def test_observer_has_one_pending_request_per_peer() -> None:
    bench = Bench()
    bench.observer.watch(NOW)
    first = bench.tick(NOW)
    assert len(first) == 2
    assert bench.tick(NOW + 1000) == []
    to_b = next(request for request in first if request.peer == "b")
    (second,) = bench.answer(to_b, StatusReply({"ready": True}), NOW + 1100)
    assert _asked([second]) == {"b": HistoryRequest(0)}
    samples = HistoryReply(pack_samples([Sample(NOW, reads=7)]))
    assert bench.answer(second, samples, NOW + 1200) == []
    sight = bench.observer.sights["b"]
    assert (sight.status, sight.heard, sight.alert) == ({"ready": True}, NOW + 1100, "")
    assert [sample.reads for sample in sight.samples] == [7]
    (third,) = bench.tick(NOW + 2000)
    (fourth,) = bench.answer(third, StatusReply({}), NOW + 2100)
    assert _asked([fourth]) == {"b": HistoryRequest(NOW)}, "only what is new"


def test_lost_connection_is_shown_until_the_next_answer() -> None:
    bench = Bench()
    bench.observer.watch(NOW)
    first = bench.tick(NOW)
    bench.observer.lost("b")
    assert bench.observer.sights["b"].is_gone
    for request in first:
        bench.scheduler.unsent(request.peer, request.correlation)
    bench.tick(NOW + 500)
    assert bench.observer.sights["b"].alert == "b is not connected"
    for request in bench.tick(NOW + 1000):
        more = bench.answer(request, StatusReply({}), NOW + 1100)
        bench.answer(more[0], HistoryReply(b""), NOW + 1200)
    assert not bench.observer.sights["b"].is_gone


def test_garbage_from_a_peer_is_an_alert_about_it() -> None:
    bench = Bench()
    bench.observer.watch(NOW)
    first = bench.tick(NOW)[0]
    second = bench.answer(first, StatusReply({}), NOW)[-1]
    bench.answer(second, HistoryReply(b"garbage"), NOW)
    sight = bench.observer.sights[first.peer]
    assert "samples" in sight.alert
    assert not sight.is_gone


def test_watch_after_a_pause_drops_old_sights() -> None:
    bench = Bench()
    bench.observer.watch(NOW)
    bench.tick(NOW)
    bench.observer.sights["b"].heard = NOW
    bench.observer.watch(NOW + 60_000)
    assert bench.observer.sights == {}
