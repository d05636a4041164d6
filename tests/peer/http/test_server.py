"""Pages over HTTP with hostile clients."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import requests

from dstash.errors import UsageError
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


def test_head_has_the_headers_of_get_and_no_body(server: HttpServer) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    for path, status in (("/small", b"200"), ("/none", b"404")):
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(f"HEAD {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        size = len(requests.get(server.address + path, timeout=30).content)
        assert f"Content-Length: {size}".encode() in head
        assert body == b""


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("::1", ["[::1]"]),
        ("::", ["[::1]", "127.0.0.1"]),
        ("*", ["[::1]", "127.0.0.1"]),
        ("localhost", ["localhost"]),
        ("0.0.0.0", ["127.0.0.1"]),  # noqa: S104
    ],
)
def test_server_on_host_answers_at_its_addresses(host: str, served: list[str]) -> None:
    server = HttpServer(host, 0, {"/small": lambda: Answer.json(200, {"ok": True})})
    server.start()
    try:
        port = server.address.rpartition(":")[2]
        shown = f"[{host}]" if ":" in host else host
        assert server.address == f"http://{shown}:{port}"
        for address in served:
            assert requests.get(f"http://{address}:{port}/small", timeout=30).json() == {"ok": True}
    finally:
        server.stop()


def test_server_on_all_addresses_without_ipv6_uses_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    open_socket = socket.socket

    def without_ipv6(family: int = -1, *arguments: int, **named: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return open_socket(family, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", without_ipv6)
        server = HttpServer("*", 0, {})
    assert server._server.address_family == socket.AF_INET
    server.stop()


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("::1", 1, r"cannot serve HTTP on \[::1\]:\d+: Address already in use"),
        ("203.0.113.1", 0, r"cannot serve HTTP on 203.0.113.1:0: Cannot assign requested address"),
        ("no.such.host.invalid", 0, r"cannot serve HTTP on no.such.host.invalid:0: .+"),
    ],
)
def test_address_that_cannot_be_bound_is_named(host: str, port: int, text: str) -> None:
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as taken,
        pytest.raises(UsageError, match=text),
    ):
        HttpServer(host, taken.getsockname()[1] if port else 0, {})


def test_pages_have_a_strict_content_security_policy(server: HttpServer) -> None:
    policy = requests.get(server.address + "/small", timeout=30).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
