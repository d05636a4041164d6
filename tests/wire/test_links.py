"""Tests of the events on connections, whose other side is replaced by another process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from dstash.wire.links import Event, Links
from dstash.wire.sockets import Context, Poller
from tests.harness.waiting import wait_until


class Process:
    """The other side of a connection: answers each message with its name."""

    def __init__(self, name: bytes, port: int = 0) -> None:
        self.name = name
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        wait_until(lambda: self._binds(port), 10, "the port is free")
        self.port = int(self._socket.get(zmq.LAST_ENDPOINT).rsplit(b":", 1)[1].rstrip(b"\0"))

    def _binds(self, port: int) -> bool:
        try:
            self._socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        except zmq.ZMQError:
            return False
        return True

    def answer(self) -> None:
        """Wait for a message and answer it."""
        assert self._socket.poll(10_000)
        sender, *_ = self._socket.recv_multipart()
        self._socket.send_multipart([sender, self.name])

    def end(self) -> None:
        """Close the port, as the end of a process does."""
        self._context.destroy(linger=0)


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    yield made
    made.close()


@pytest.mark.parametrize("takes", ["events", "message_from"])
def test_loss_is_reported_before_messages_of_the_next_process(context: Context, takes: str) -> None:
    poller = Poller()
    links = Links(context, poller, lambda: [b"greeting"])
    first = Process(b"first")
    address = f"tcp://127.0.0.1:{first.port}"

    def take() -> list[Event]:
        """Return all events of the sockets that are ready, in the order of a channel."""
        taken: list[Event] = []
        for ready in poller.wait(50):
            event: Any = links.message_from(ready) if takes == "message_from" else None
            taken += [event] if event is not None else links.events(ready)
        return taken

    assert links.send("a", address, [b"question"])
    seen: list[Event] = []
    for _ in range(2):  # the greeting, and the question
        wait_until(lambda: links.up("a", address) or take(), 10, "it is connected")
        first.answer()
    wait_until(lambda: seen.extend(take()) or len(seen) == 2, 10, "both are answered")
    assert {event.parts[0] for event in seen if event.parts} == {b"first"}
    first.end()
    second = Process(b"second", first.port)
    # The client still believes that it is connected to the first process. libzmq reconnects.
    deadline = time.monotonic() + 10
    while not second._socket.poll(10):
        assert time.monotonic() < deadline
        link = links.up("a", address)
        assert link is not None
        link.send([b"question"])
    second.answer()
    time.sleep(0.1)
    seen = take()
    while len(seen) < 2:
        seen += take()
    assert seen[0] == Event("a", None)
    assert Event("a", [b"second"]) in seen[1:]
    links.close()
    second.end()
