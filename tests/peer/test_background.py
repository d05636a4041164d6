"""The background work of a peer: its time and epoch, its clocks, and the messages of its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication.tasks import Effect
from dstash.cluster.replication.transfer import ask
from dstash.errors import DStashError, Unavailable
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.write_floor import WriteFloor
from dstash.peer.background import Background
from dstash.peer.maintenance import Pace
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import Ping, Pong
from dstash.wire.replication import ClockReply, ClockRequest
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
