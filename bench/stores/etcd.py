"""etcd: one server, and puts of single keys over its HTTP gateway, each synced before the answer.

A Python program without gRPC uses this gateway. The client is minimal (a connection per caller,
hand-written requests), so that the measured time is that of etcd.
"""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.stores.servers import START_SECONDS, Server, fetched
from bench.stores.store import System
from tests.harness.ports import free_ports
from tests.harness.waiting import wait_until

_HEAD: Final = "POST /v3/kv/put HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n"
_LENGTH: Final = b"content-length:"


class EtcdServer(System):
    """An etcd server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self._peer_port = free_ports(2)
        self.servers: list[Server] = []

    def start(self) -> None:
        """Start the process."""
        self._folder.mkdir(parents=True)
        client, peer = (f"http://127.0.0.1:{port}" for port in (self.port, self._peer_port))
        command = [fetched("get-etcd"), "--data-dir", str(self._folder / "data")]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"default={peer}", "--log-level", "error"]
        server = Server("etcd", command, self._folder)
        self.servers.append(server)

        def is_healthy() -> bool:
            server.check()
            try:
                with urllib.request.urlopen(f"{client}/health", timeout=5) as answer:  # noqa: S310  # HTTP, to loopback
                    return bool(json.load(answer)["health"] == "true")
            except (urllib.error.URLError, OSError):
                return False

        wait_until(is_healthy, START_SECONDS, "etcd is healthy")

    def stop(self) -> None:
        """Stop the process."""
        for server in self.servers:
            server.stop()


async def put_all(port: int, pairs: Iterator[tuple[str, bytes]], callers: int) -> None:
    """Put pairs with this number of callers, one at a time each."""
    await asyncio.gather(*(_put_some(port, pairs) for _ in range(callers)))


async def _put_some(port: int, pairs: Iterator[tuple[str, bytes]]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for key, value in pairs:
            writer.write(_request(key, value))
            await _answer(reader)
    finally:
        writer.close()
        await writer.wait_closed()


def _request(key: str, value: bytes) -> bytes:
    pair = (base64.b64encode(key.encode()).decode(), base64.b64encode(value).decode())
    body = f'{{"key":"{pair[0]}","value":"{pair[1]}"}}'
    return (_HEAD.format(len(body)) + body).encode()


async def _answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    begin = head.lower().index(_LENGTH) + len(_LENGTH)
    await reader.readexactly(int(head[begin : head.index(b"\r", begin)]))
