"""The HTTP pages: on loopback by default, read-only, and available under load."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dstash.peer.http.server import _MAX_CONNECTIONS, Answer, HttpServer
from tests.harness.peers import Peers

ELSEWHERE = "127.0.0.2"  # also this machine, but another address than 127.0.0.1


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server with one page."""
    server = HttpServer("127.0.0.1", 0, {"/page": lambda: Answer.json(200, {"a": 1})})
    server.start()
    yield int(server.address.rpartition(":")[2])
    server.stop()


def status(port: int, method: str, path: str = "/page") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT"])
def test_http_has_no_writing_method(port: int, method: str) -> None:
    assert status(port, method) == 501
    assert status(port, "GET") == 200


def test_silent_connections_do_not_block_probes(port: int) -> None:
    with ExitStack() as kept:
        for _ in range(3 * _MAX_CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            kept.enter_context(connection)
        assert status(port, "GET") == 200
        connection.sendall(b"GET /page HTTP/1.1\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"  # the newest connections are kept


def test_http_listens_on_loopback_by_default(tmp_path: Path) -> None:
    with Peers.local(tmp_path, "--replicas", "1") as peers:
        peers.form("p1")
        for port in (peers["p1"].port, peers["p1"].http_port):
            socket.create_connection(("127.0.0.1", port), timeout=20).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((ELSEWHERE, port), timeout=20)
