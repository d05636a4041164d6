"""Why no peer answers: each cause in its own words, and at once if waiting does not help."""

from __future__ import annotations

import asyncio
import http.server
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dstash import AsyncClient, Client, NoPeers
from dstash.wire.curve import KeyPair, ZapHandler
from dstash.wire.diagnosis import (
    CLOSES,
    HTTP,
    NEEDS_CURVE,
    NO_CURVE,
    OTHER,
    REDIS,
    REFUSED,
    SILENT,
    WRONG_KEY,
    Finding,
    examine,
)
from dstash.wire.router import Router
from dstash.wire.sockets import Context
from tests.harness.peers import Peers
from tests.harness.ports import free_port

#: Much more than a cause that waiting does not remove may take.
TIMEOUT = 20.0


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen, and serve each connection on its own thread; yields the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def program(greeting: bytes, answer: bytes, *, closes: bool = False) -> AbstractContextManager[int]:
    """Listen as a program that waits for a line, and answers it; yields the port."""

    def serve(connection: socket.socket) -> None:
        with connection:
            if closes:
                return
            connection.sendall(greeting)
            heard = b""
            while b"\n" not in heard:
                if not (part := connection.recv(1000)):
                    return
                heard += part
            connection.sendall(answer)
            connection.recv(1000)

    return listener(serve)


def busy_port(target: int) -> AbstractContextManager[int]:
    """Forward ZeroMQ connections to a port, but close the first; never answer other programs."""
    attempts = itertools.count()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            begin = connection.recv(1000)
            if not begin.startswith(b"\xff"):
                connection.recv(1000)  # until the other side closes it
            elif next(attempts) > 0:
                with socket.create_connection(("127.0.0.1", target)) as peer:
                    peer.sendall(begin)
                    threading.Thread(target=pump, args=(peer, connection), daemon=True).start()
                    pump(connection, peer)

    return listener(serve)


def failure(*peers: str, timeout: float = TIMEOUT, **settings: Any) -> tuple[NoPeers, float]:
    """Return the error of the first call of a client, and the seconds it took."""
    began = time.monotonic()
    with Client(*peers, timeout=timeout, **settings) as client, pytest.raises(NoPeers) as caught:
        client.lookup("i", "k")
    return caught.value, time.monotonic() - began


@pytest.mark.parametrize(
    ("greeting", "answer", "closes", "reason"),
    [
        (b"", b"-ERR wrong number of arguments for 'get' command\r\n", False, REDIS),
        (b"", b"-NOAUTH Authentication required.\r\n", False, REDIS),
        (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", False, HTTP),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"", False, OTHER),
        (b"", b"ERROR\r\n", False, OTHER),
        (b"", b"", True, CLOSES),
    ],
)
def test_examination_distinguishes_programs(
    greeting: bytes, answer: bytes, closes: bool, reason: str
) -> None:
    with program(greeting, answer, closes=closes) as port:
        assert examine(f"tcp://127.0.0.1:{port}") == Finding(reason)


def test_examination_finds_closed_and_silent_ports_and_zeromq() -> None:
    assert examine(f"tcp://127.0.0.1:{free_port()}") == Finding(REFUSED)
    with socket.create_server(("127.0.0.1", 0)) as paused:
        assert examine(f"tcp://127.0.0.1:{paused.getsockname()[1]}") == Finding(SILENT)
    context = Context()
    router = Router(context, "tcp://127.0.0.1:0")
    assert examine(router.address) == Finding(CLOSES, "NULL")
    router.close_after(0)
    context.close()


def test_closed_port_and_unknown_name_may_be_a_peer_that_starts() -> None:
    port = free_port()
    error, seconds = failure(f"127.0.0.1:{port}", timeout=0.5)
    place = f"tcp://127.0.0.1:{port}"
    assert str(error) == f"no peer answered at {place} ({REFUSED}); is it running?"
    assert seconds >= 0.5
    error, _ = failure(f"127.0.0.1:{port}", "nowhere.invalid:1", timeout=0.5)
    assert error.details["reasons"][place] == REFUSED
    assert (
        "'nowhere.invalid' does not resolve" in error.details["reasons"]["tcp://nowhere.invalid:1"]
    )
    assert f"{place}: {REFUSED}; tcp://nowhere.invalid:1: the name" in str(error)


def test_redis_port_is_named_before_the_timeout() -> None:
    with program(b"", b"-ERR wrong number of arguments for 'get' command\r\n") as port:
        error, seconds = failure(f"127.0.0.1:{port}")
    assert str(error) == f"no peer answered at tcp://127.0.0.1:{port} ({REDIS})"
    assert seconds < TIMEOUT / 2


def test_http_port_is_named_before_the_timeout() -> None:
    handler = http.server.BaseHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]

        async def ask() -> None:
            async with AsyncClient(f"127.0.0.1:{port}", timeout=TIMEOUT) as client:
                await client.lookup("i", "k")

        began = time.monotonic()
        with pytest.raises(NoPeers, match="an HTTP server answers there"):
            asyncio.run(ask())
        assert time.monotonic() - began < TIMEOUT / 2
        server.shutdown()


class CurvePort:
    """A router with CURVE that admits every key, and the settings of a client with keys."""

    def __init__(self, folder: Path) -> None:
        self.server, client = KeyPair.generate(), KeyPair.generate()
        client.save(folder / "client.key", folder / "client.key_secret")
        self.context = Context(keys=self.server)
        self.zap = ZapHandler(self.context, lambda key: True)
        self.router = Router(self.context, "tcp://127.0.0.1:0")
        self.settings: dict[str, Any] = {
            "curve": True,
            "cert_file": folder / "client.key",
            "key_file": folder / "client.key_secret",
        }

    def close(self) -> None:
        self.router.close_after(0)
        self.context.close()


@pytest.fixture
def curve(tmp_path: Path) -> Iterator[CurvePort]:
    port = CurvePort(tmp_path)
    yield port
    port.close()


def test_plain_client_at_a_curve_port_and_wrong_server_key_are_named(curve: CurvePort) -> None:
    address = curve.router.address
    error, seconds = failure(address)
    assert str(error) == f"no peer answered at {address} ({NEEDS_CURVE})"
    assert seconds < TIMEOUT / 2
    other = KeyPair.generate().public
    error, seconds = failure(address, server_key=other, **curve.settings)
    assert str(error) == f"no peer answered at {address} ({WRONG_KEY})"
    assert seconds < TIMEOUT / 2


def test_client_with_keys_at_a_plain_port_is_named(curve: CurvePort) -> None:
    context = Context()
    router = Router(context, "tcp://127.0.0.1:0")
    error, seconds = failure(router.address, server_key=curve.server.public, **curve.settings)
    assert str(error) == f"no peer answered at {router.address} ({NO_CURVE})"
    assert seconds < TIMEOUT / 2
    router.close_after(0)
    context.close()


def test_client_waits_while_another_address_may_still_answer(curve: CurvePort) -> None:
    error, seconds = failure(curve.router.address, f"127.0.0.1:{free_port()}", timeout=0.8)
    assert seconds >= 0.8
    assert NEEDS_CURVE in str(error)
    assert REFUSED in str(error)


def test_second_attempt_connects_while_the_first_is_examined(peers: Peers, index: str) -> None:
    """The request that was lost with the first attempt is sent again at once."""

    async def put(port: int) -> None:
        async with AsyncClient(f"127.0.0.1:{port}", timeout=TIMEOUT) as client:
            await client.put(index, "k", 1)

    began = time.monotonic()
    with busy_port(peers["a"].port) as port:
        asyncio.run(put(port))
    with busy_port(peers["a"].port) as port, Client(f"127.0.0.1:{port}", timeout=TIMEOUT) as client:
        assert client.lookup(index, "k") == 1
    assert time.monotonic() - began < TIMEOUT / 2
