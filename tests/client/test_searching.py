"""Tests of the search for the cluster within a call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from dstash import AsyncClient, Client
from dstash.cluster.topology.topology import Member, Topology
from dstash.errors import DStashError, NotReady
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Error, Hello, Welcome
from dstash.wire.shapes import Message
from tests.harness.ports import free_port


class _Unready:
    """Two members that answer ``Hello``, and reply ``NotReady`` to every other request."""

    def __init__(self, router: zmq.Socket[bytes], ports: list[int]) -> None:
        self.seeds = [f"tcp://127.0.0.1:{port}" for port in ports]
        self.greetings = 0
        self.over = threading.Event()
        self._router = router
        members = tuple(
            Member(name, seed, f"store-{name}", f"z-{name}")
            for name, seed in zip("ab", self.seeds, strict=True)
        )
        self._topology = Topology("c", "id", 5, 2, formed=True, members=members, min_peers=2)

    def serve(self) -> None:
        while not self.over.is_set():
            if self._router.poll(20):
                sender, *parts = self._router.recv_multipart()
                request = decode(parts)
                answer = Envelope(request.correlation, 5, 0, self._answer(request.message))
                self._router.send_multipart([sender, *encode(answer)])

    def _answer(self, message: Message) -> Message:
        if not isinstance(message, Hello):
            return Error.of(NotReady("not yet"))
        self.greetings += 1
        return Welcome("c", "a", 1, 1, {}, self._topology.encode(), ["a", "b"])


@contextmanager
def _unready() -> Iterator[_Unready]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        ports = [free_port(), free_port()]
        for port in ports:
            router.bind(f"tcp://127.0.0.1:{port}")
        members = _Unready(router, ports)
        thread = threading.Thread(target=members.serve)
        thread.start()
        try:
            yield members
        finally:
            members.over.set()
            thread.join()


def _ask_blocking(seeds: list[str]) -> None:
    with Client(*seeds, timeout=1.2) as client:
        client.put("i", "k", 1)


def _ask_asyncio(seeds: list[str]) -> None:
    async def ask() -> None:
        async with AsyncClient(*seeds, timeout=1.2) as client:
            await client.put("i", "k", 1)

    asyncio.run(ask())


@pytest.mark.parametrize("ask", [_ask_blocking, _ask_asyncio])
def test_search_pauses_when_members_only_answer_hello(
    ask: Callable[[list[str]], None],
) -> None:
    with _unready() as members:
        with pytest.raises(DStashError):
            ask(members.seeds)
        # Both members get a ``Hello`` at the start, on each connection, and every half second.
        assert members.greetings < 30
