"""The background work of a peer: its time and epoch, its clocks, and the messages of its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication.tasks import Effect
from dstash.cluster.replication.transfer import ask
from dstash.cluster.topology.topology import Change
from dstash.cluster.topology.view import View
from dstash.errors import DStashError, Unavailable
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.write_floor import WriteFloor
from dstash.peer.background.background import Background
from dstash.peer.background.maintenance import Pace
from dstash.wire.codec import pack_blobs
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Lookup, Ping, Pong, Want
from dstash.wire.replication import ClockReply, ClockRequest
from tests.harness.joined import Joined
from tests.peer.parts import EPOCH, NOW, Parts, view_of


class Work:
    """The background work of peer ``a``, whose writes are on disk at once."""

    def __init__(self) -> None:
        self.parts = parts = Parts(knows_clocks=False)
        self.backlog = Backlog(1000, 10)
        self.background = Background(
            "a",
            parts.partitions,
            parts.clock,
            WriteFloor("a", parts.partitions, parts.clock),
            hints=Hints(10, 10),
            backlog=self.backlog,
            commit=lambda merge, done: done(None),
            pace=Pace(),
            now=NOW,
        )

    def requests(self, kind: type, *, stopping: bool = False) -> dict[str, Envelope]:
        """Return, by peer, the requests of a kind that the tasks send in some ticks."""
        found = {}
        for _ in range(10):
            for outgoing in self.background.tick(stopping=stopping):
                envelope = decode(outgoing.frames)
                if isinstance(envelope.message, kind):
                    found[outgoing.peer] = envelope
        return found


@pytest.fixture
def work() -> Work:
    return Work()


def test_requests_carry_the_epoch_of_the_view(work: Work) -> None:
    assert work.background.epoch == 0
    work.background.install(view_of(), NOW)
    envelopes = work.requests(ClockRequest).values()
    assert {envelope.epoch for envelope in envelopes} == {work.background.epoch} == {EPOCH}


def test_answers_show_the_clocks_of_other_peers(work: Work) -> None:
    work.background.install(view_of(), NOW)
    for peer, envelope in work.requests(ClockRequest).items():
        answer = Envelope(envelope.correlation, EPOCH, NOW + 900, ClockReply(NOW + 900, 0))
        work.background.answered(peer, answer)
    assert work.parts.clock.knows_majority
    assert work.parts.clock.offset_ms == -900


def test_task_gets_its_answer_or_the_loss_of_the_connection(work: Work) -> None:
    ended: list[tuple[Any, DStashError | None]] = []

    def task(peer: str) -> Iterator[Effect]:
        return (yield from ask(peer, Ping(), Pong))  # type: ignore[misc]

    for peer in "bc":
        work.background.scheduler.spawn(peer, task(peer), lambda *end: ended.append(end))  # type: ignore[arg-type]
    [first, _] = work.background.tick(stopping=False)
    work.background.answered("b", Envelope(first.correlation, EPOCH, NOW, Pong()))
    work.background.lost("c")
    work.background.tick(stopping=False)
    (answer, _), (_, failure) = ended
    assert answer == Pong()
    assert isinstance(failure, Unavailable)


def test_steady_time_does_not_go_back_with_the_clock(work: Work) -> None:
    before = work.background.steady_time()
    work.background.set_time(NOW - 60_000)
    assert work.background.now == NOW - 60_000
    assert work.background.steady_time() == before
    work.background.set_time(NOW - 59_000)
    assert work.background.steady_time() == before + 1000


def test_peer_that_stops_begins_no_tasks_but_a_last_report(work: Work) -> None:
    work.background.install(view_of(), NOW)
    assert work.background.awaits_last_report()
    assert not work.requests(ClockRequest, stopping=True)
    work.background.set_time(NOW + 60_000)
    assert not work.background.awaits_last_report()


def test_work_is_calm_once_clocks_are_known_and_while_no_task_is_due(work: Work) -> None:
    background, partitions = work.background, work.parts.partitions
    assert not background.is_calm, "there is no view"
    background.install(view_of(), NOW)
    partitions.freshness_confirmed = True
    assert not background.is_calm, "the other clocks are not known"
    for peer, envelope in work.requests(ClockRequest).items():
        answer = Envelope(envelope.correlation, EPOCH, NOW, ClockReply(NOW, 0))
        background.answered(peer, answer)
    work.requests(ClockRequest)
    assert background.is_calm
    partitions.freshness_confirmed = False
    assert not background.is_calm
    partitions.freshness_confirmed = True
    background.maintenance.hints.add("b", [b"\0\0\1ik"], NOW)
    assert not background.is_calm
    background.maintenance.hints.forget("b")
    partitions.corruption.report([b"\0\0\1ik"])
    assert not background.is_calm
    partitions.corruption.forget([b"\0\0\1ik"])
    assert background.is_calm
    view = view_of()
    background.install(View(replace(view.topology, change=Change(EPOCH)), view.alive), NOW)
    partitions.freshness_confirmed = True
    assert not background.is_calm, "a topology change is in progress"


def test_peer_is_calm_unless_a_request_waits_for_a_topology() -> None:
    joined = Joined()
    core = joined.peers["a"]

    def look() -> bool:
        joined.now += 100
        joined.settle()
        return core.is_calm

    assert any(look() for _ in range(20)), "the clocks are known"
    request = Envelope(
        1, joined.topology.epoch + 1, 0, Lookup("i", int(Want.VALUES), pack_blobs([b"k"]))
    )
    assert not core.receive(b"client", encode(request), joined.now)
    assert not look()
    assert any(look() for _ in range(20)), "the request has expired"
    core.health.stopping = True
    assert not look()
