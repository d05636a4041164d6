"""Requests to other peers: what hears of their answers, of lost connections and of failed sends."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dstash.cluster.replication.tasks import Outgoing
from dstash.peer.admission.topology_news import TopologyNews
from dstash.peer.dispatch.outgoing import OutgoingRequests
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import Pong
from tests.peer.parts import EPOCH, NOW, view_of

OF_REGISTERS = 1
OF_A_TASK = 2


class Asker:
    """Tasks or registers that have sent one request, and note what they hear of it."""

    def __init__(self, correlation: int) -> None:
        self.heard: list[Any] = []
        self.time = 0
        self._correlation = correlation

    def set_time(self, now: int) -> None:
        self.time = now

    def answered(self, peer: str, envelope: Envelope) -> bool:
        self.heard.append((peer, envelope.message))
        return envelope.correlation == self._correlation

    def lost(self, peer: str) -> None:
        self.heard.append(("lost", peer))

    def unsent(self, outgoing: Outgoing) -> bool:
        self.heard.append(("unsent", outgoing.correlation))
        return outgoing.correlation == self._correlation


class Bench:
    """The outgoing requests of a peer, whose tasks and registers have sent one each."""

    def __init__(self) -> None:
        self.tasks, self.registers = Asker(OF_A_TASK), Asker(OF_REGISTERS)
        self.counts: Counter[str] = Counter()
        self.news = TopologyNews("a", "store-a", lambda it: it, self.counts, lambda: None)
        self.news.install(view_of())
        self.outgoing = OutgoingRequests(
            self.tasks,  # type: ignore[arg-type]
            self.registers,  # type: ignore[arg-type]
            self.news,
            self.counts,
        )

    def answer(self, correlation: int, epoch: int = EPOCH) -> None:
        self.outgoing.answered("b", encode(Envelope(correlation, epoch, 0, Pong())), NOW)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_answer_goes_to_what_has_asked(bench: Bench) -> None:
    bench.answer(OF_REGISTERS)
    assert bench.tasks.heard == []
    bench.answer(OF_A_TASK)
    assert bench.tasks.heard == [("b", Pong())]
    assert bench.tasks.time == NOW


def test_answer_of_a_later_epoch_is_news_of_a_topology(bench: Bench) -> None:
    bench.answer(OF_REGISTERS)
    assert not bench.news.wants_refresh
    bench.answer(OF_REGISTERS, EPOCH + 1)
    assert bench.news.wants_refresh


def test_malformed_answer_is_counted_and_dropped(bench: Bench) -> None:
    bench.outgoing.answered("b", [b"garbage"], NOW)
    assert bench.counts == {"malformed": 1}
    assert bench.tasks.heard == bench.registers.heard == []
    assert bench.tasks.time == NOW


def test_lost_connection_ends_requests_of_tasks_and_registers(bench: Bench) -> None:
    bench.outgoing.lost("b")
    assert bench.tasks.heard == bench.registers.heard == [("lost", "b")]


def test_unsent_message_is_reported_to_what_sent_it(bench: Bench) -> None:
    bench.outgoing.unsent(Outgoing("b", [], OF_REGISTERS))
    assert bench.tasks.heard == []
    bench.outgoing.unsent(Outgoing("b", [], OF_A_TASK))
    assert bench.tasks.heard == [("unsent", OF_A_TASK)]
