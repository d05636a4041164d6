"""memcached through pymemcache: three independent servers and a HashClient."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pymemcache.client.hash import HashClient  # type: ignore[import-untyped]  # has no types

from bench.stores.servers import START_SECONDS, Server, fetched
from bench.stores.store import Pairs, Store, System
from tests.harness.ports import free_ports
from tests.harness.waiting import wait_until

_NODES = 3
_MEMORY_MIB = 1024  # with less memory it would evict records
_LARGEST_ITEM = "8m"


class MemcachedServers(System):
    """Three servers, which keep all data in memory only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ports = free_ports(_NODES)
        self._servers: list[Server] = []

    def start(self) -> None:
        """Start the servers."""
        self._folder.mkdir(parents=True)
        program = fetched("get-memcached")
        for port in self.ports:
            command = [program, "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-u", "root"]
            command += ["-m", str(_MEMORY_MIB), "-I", _LARGEST_ITEM]
            self._servers.append(Server(f"memcached-{port}", command, self._folder))
        for port, server in zip(self.ports, self._servers, strict=True):
            self._await_answer(port, server)

    def stop(self) -> None:
        """Stop the servers."""
        for server in self._servers:
            server.stop()

    def _await_answer(self, port: int, server: Server) -> None:
        def listens() -> bool:
            server.check()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, START_SECONDS, f"memcached on port {port} listens")


class Memcached(Store):
    """pymemcache's HashClient: set_many and get_many."""

    name = "memcached"

    def __init__(self, ports: Sequence[int]) -> None:
        nodes = [("127.0.0.1", port) for port in ports]
        self._client: Any = HashClient(nodes, no_delay=True, timeout=60, connect_timeout=10)

    def put(self, pairs: Pairs) -> None:
        """Store all pairs with one set_many per server."""
        failed = self._client.set_many(pairs, noreply=False)
        assert not failed, f"memcached did not store {len(failed)} keys"

    def get(self, keys: Sequence[str]) -> Any:
        """Look up all keys with one get_many per server."""
        return self._client.get_many(keys)

    def get_one(self, key: str) -> bytes | None:
        """Look up a key."""
        value: bytes | None = self._client.get(key)
        return value

    def found(self, answer: Any, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Return the answer, which is already a mapping."""
        found: Mapping[str, bytes] = answer
        return found

    def close(self) -> None:
        """Close the client."""
        self._client.close()
