"""The server: the event loop around the core."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs

from dstash import events
from dstash.cluster.replication.tasks import Merge, Pause, Task
from dstash.limits import MIB
from dstash.peer.admission.requests import Reply
from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.peer.server import PeerServer, _NoAgentYet, wall
from dstash.peer.supervision import slow_disk
from dstash.store.interface import Merged, Write
from dstash.store.memory import TwinStore
from dstash.wire.connections.connections import Limits
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Hello, Ping, Pong, StatusRequest
from dstash.wire.router import Router
from dstash.wire.sockets import Context, Link, Poller
from tests.harness.waiting import wait_until


class Broken(TwinStore):
    """A store with an unexpected defect."""

    def stats(self) -> object:  # type: ignore[override]
        raise ZeroDivisionError("a defect")


class Slow(TwinStore):
    """A store on a slow disk."""

    def commit(self, writes: Sequence[Write]) -> list[Merged]:
        time.sleep(0.3)
        return super().commit(writes)


@pytest.fixture
def server() -> Iterator[tuple[PeerCore, Link]]:
    with serving(Broken()) as served:
        yield served


@contextmanager
def serving(store: TwinStore) -> Iterator[tuple[PeerCore, Link]]:
    """Run a server on a store."""
    context = Context()
    router = Router(context, "tcp://127.0.0.1:*", limits=Limits.of(100, 32 * MIB))
    core = PeerCore(Settings("a", "test"), store, wall())
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


def test_slow_commit_and_refused_client_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_disk, "SLOW_S", 0.1)

    def work() -> Task:
        yield Merge([])

    with capture_logs() as logs, serving(Slow()) as (core, link):
        answer(link, Envelope(7, 0, 0, Hello("another")))
        core.scheduler.spawn("work", work())
        answer(link, Envelope(8, 0, 0, Ping()))
        wait_until(lambda: core.health.counts["commits"] == 1, 20, "the commit is done")
        lines = {line["event"]: line for line in logs}
    refused = lines[events.CLIENT_REFUSED]
    assert refused["why"] == "this is cluster 'test', not 'another'"
    assert refused["address"].startswith("127.0.0.1:")
    assert lines[events.DISK_SLOW]["commit_s"] >= 0.1


class Agent(_NoAgentYet):
    """An agent that counts how often it should read the membership."""

    refreshed = 0

    def refresh(self) -> None:
        """Count."""
        self.refreshed += 1


def test_membership_is_read_soon_when_the_connection_to_a_peer_breaks() -> None:
    context, agent = Context(), Agent()
    other = Router(context, "tcp://127.0.0.1:*")
    core = PeerCore(Settings("a", "test"), TwinStore(), wall())
    server = PeerServer(core, Router(context, "tcp://127.0.0.1:*"), context, drain=1)
    server.attach(agent)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:

        def connect() -> list[Reply]:
            assert server._links.send("b", other.address, encode(Envelope(1, 0, 0, Ping())))
            return []

        server.post(connect)
        wait_until(lambda: other.receive() is not None, 10, "the message")
        assert agent.refreshed == 0
        other.close_after(0)
        wait_until(lambda: agent.refreshed > 0, 10, "the connection to break")
    finally:
        server.stop()
        thread.join(10)
        context.close()
    assert not thread.is_alive()
