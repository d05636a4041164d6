"""The server: the event loop around the core."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from dstash.cluster.replication.tasks import Pause, Task
from dstash.peer.core import PeerCore, Settings
from dstash.peer.server import PeerServer, wall
from dstash.store.memory import TwinStore
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Ping, Pong, StatusRequest
from dstash.wire.router import Router
from dstash.wire.sockets import Context, Link, Poller
from tests.harness.waiting import wait_until


class Broken(TwinStore):
    """A store with an unexpected defect."""

    def stats(self) -> object:  # type: ignore[override]
        raise ZeroDivisionError("a defect")


@pytest.fixture
def server() -> Iterator[tuple[PeerCore, Link]]:
    context = Context()
    router = Router(context, "tcp://127.0.0.1:*")
    core = PeerCore(Settings("a", "test"), Broken(), wall())
    server = PeerServer(core, router, context, drain=1)
    thread = threading.Thread(target=server.run)
    thread.start()
    link = Link(context, router.address, lambda: encode(Envelope(1, 0, 0, Ping())))
    yield core, link
    server.stop()
    thread.join(10)
    link.close()
    context.close()
    assert not thread.is_alive()


def answer(link: Link, envelope: Envelope) -> Envelope:
    """Send a request and return the reply."""
    poller = Poller()
    poller.watch(link.socket, link.monitor)
    assert link.send(encode(envelope))
    found: list[Envelope] = []

    def came() -> bool:
        poller.wait(100)
        link.changes()
        while (parts := link.receive()) is not None:
            found.extend(
                reply for reply in [decode(parts)] if reply.correlation == envelope.correlation
            )
        return bool(found)

    wait_until(came, 20, f"an answer to {envelope}")
    return found[0]


def test_message_that_raises_does_not_stop_the_peer(
    server: tuple[PeerCore, Link],
) -> None:
    core, link = server
    assert isinstance(answer(link, Envelope(7, 0, 0, Ping())).message, Pong)
    assert link.send(encode(Envelope(8, 0, 0, StatusRequest())))
    assert isinstance(answer(link, Envelope(9, 0, 0, Ping())).message, Pong)
    assert core.health.counts["unhandled"] == 1


@pytest.mark.parametrize("busy", [False, True])
def test_answers_are_sent_before_background_work(
    server: tuple[PeerCore, Link], busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, link = server
    yields: list[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: yields.append(None))

    def work() -> Task:
        while True:
            yield Pause()

    if busy:
        core.scheduler.spawn("work", work())
    for number in range(5):
        answer(link, Envelope(100 + number, 0, wall() + 5000, Ping()))
    answered = 5
    assert (len(yields) > 0) == busy
    assert len(yields) <= answered + 1, "not for each step of the work"
