"""Pages over HTTP with hostile clients."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import requests

from dstash.peer.http.server import Answer, HttpServer

LARGE = b"x" * 8_000_000


@pytest.fixture
def server() -> Iterator[HttpServer]:
    pages = {
        "/small": lambda: Answer.json(200, {"ok": True}),
        "/large": lambda: Answer(200, LARGE, "text/plain"),
    }
    server = HttpServer("127.0.0.1", 0, pages)
    server.start()
    yield server
    server.stop()


def _get(server: HttpServer, path: str, method: str = "GET") -> int:
    return requests.request(method, server.address + path, timeout=30).status_code


def test_slow_and_silent_clients_do_not_block_others(server: HttpServer) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    crowd = [socket.create_connection((host, int(port)), timeout=30) for _ in range(100)]
    try:
        for place, client in enumerate(crowd):
            client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" if place % 2 else b"GET /sm")
        assert _get(server, "/small") == 200
        first = b"".join(iter(lambda: crowd[0].recv(1 << 16), b""))
        assert first == b"", "the oldest had to go"
    finally:
        for client in crowd:
            client.close()


def test_methods_other_than_get_are_refused(server: HttpServer) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert _get(server, "/small", method) == 501
    assert _get(server, "/none") == 404


def test_pages_have_a_strict_content_security_policy(server: HttpServer) -> None:
    policy = requests.get(server.address + "/small", timeout=30).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
