"""etcd: one server, and calls for single keys over its HTTP gateway; writes are synced.

A Python program without gRPC uses this gateway. The client is minimal (a connection per caller,
hand-written requests), so that the measured time is that of etcd.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from bench.stores.servers import START_SECONDS, Server, fetched
from bench.stores.store import System
from tests.harness.ports import free_ports
from tests.harness.waiting import wait_until

_HEAD: Final = "POST /v3/kv/{} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n"
_LENGTH: Final = re.compile(rb"content-length: *(\d+)")
_REVISION: Final = re.compile(rb'"revision":"(\d+)"')


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


class EtcdCaller:
    """A caller with a connection of its own; one call at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> Self:
        """Return a connected caller."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()

    async def put(self, key: str, value: bytes) -> int:
        """Store a value; return its revision."""
        answer = await self._ask("put", f'{{"key":"{_coded(key)}","value":"{_coded(value)}"}}')
        return _number(_REVISION, answer)

    async def get(self, key: str) -> tuple[bytes, int]:
        """Return the value of an existing key, and its revision."""
        [entry] = json.loads(await self._ask("range", f'{{"key":"{_coded(key)}"}}'))["kvs"]
        return base64.b64decode(entry["value"]), int(entry["mod_revision"])

    async def compare_and_set(self, key: str, value: bytes, revision: int) -> int:
        """Store a value if the key has this revision (0: is missing); return the new one, or 0."""
        name = _coded(key)
        answer = await self._ask(
            "txn",
            f'{{"compare":[{{"key":"{name}","target":"MOD","mod_revision":"{revision}"}}],'
            f'"success":[{{"requestPut":{{"key":"{name}","value":"{_coded(value)}"}}}}]}}',
        )
        return _number(_REVISION, answer) if b'"succeeded":true' in answer else 0

    async def _ask(self, call: str, body: str) -> bytes:
        self._writer.write((_HEAD.format(call, len(body)) + body).encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        return await self._reader.readexactly(_number(_LENGTH, head.lower()))


async def put_all(port: int, pairs: Iterator[tuple[str, bytes]], callers: int) -> None:
    """Put pairs with this number of callers, one at a time each."""
    await asyncio.gather(*(_put_some(port, pairs) for _ in range(callers)))


async def _put_some(port: int, pairs: Iterator[tuple[str, bytes]]) -> None:
    caller = await EtcdCaller.connect(port)
    try:
        for key, value in pairs:
            await caller.put(key, value)
    finally:
        await caller.close()


def _coded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def _number(pattern: re.Pattern[bytes], text: bytes) -> int:
    found = pattern.search(text)
    assert found is not None, text
    return int(found[1])
