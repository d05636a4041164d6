"""Redis through redis-py: one server, and a cluster of three masters. AOF synced every second."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis

from bench.stores.servers import START_SECONDS, Server, fetched
from bench.stores.store import Pairs, Store, System
from tests.harness.ports import free_ports
from tests.harness.waiting import wait_until

_NODES = 3
_SLOTS = 16_384


def _start(folder: Path, port: int, options: Sequence[str] = ()) -> Server:
    directory = folder / f"redis-{port}"
    directory.mkdir(parents=True)
    command = [fetched("get-redis"), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(directory), "--save", "", "--appendonly", "yes"]
    return Server(f"redis-{port}", [*command, "--appendfsync", "everysec", *options], folder)


def _await_answer(port: int, server: Server) -> None:
    def answers() -> bool:
        server.check()
        try:
            return bool(_node(port).ping())
        except redis.ConnectionError:
            return False

    wait_until(answers, START_SECONDS, f"Redis on port {port} answers")


def _node(port: int) -> Any:
    return redis.Redis(host="127.0.0.1", port=port)


class RedisServer(System):
    """A Redis server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        [self.port] = free_ports(1)
        self.servers: list[Server] = []

    def start(self) -> None:
        """Start the process."""
        self.servers.append(_start(self._folder, self.port))
        _await_answer(self.port, self.servers[0])

    def stop(self) -> None:
        """Stop the process."""
        for server in self.servers:
            server.stop()


class RedisCluster(System):
    """Three masters, each with a third of the slots, without replicas."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = free_ports(2 * _NODES)
        self.ports, self._buses = ports[:_NODES], ports[_NODES:]
        self._servers: list[Server] = []

    def start(self) -> None:
        """Start the nodes, assign the slots, and wait until all nodes agree."""
        for port, bus in zip(self.ports, self._buses, strict=True):
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
            self._servers.append(_start(self._folder, port, options))
        for port, server in zip(self.ports, self._servers, strict=True):
            _await_answer(port, server)
        bounds = [_SLOTS * number // _NODES for number in range(_NODES + 1)]
        for port, (begin, end) in zip(self.ports, pairwise(bounds), strict=True):
            _node(port).execute_command("CLUSTER ADDSLOTSRANGE", begin, end - 1)
        for port, bus in zip(self.ports[1:], self._buses[1:], strict=True):
            _node(self.ports[0]).execute_command("CLUSTER MEET", "127.0.0.1", port, bus)
        wait_until(self._agrees, START_SECONDS, "the Redis Cluster agrees on its slots")

    def stop(self) -> None:
        """Stop the nodes."""
        for server in self._servers:
            server.stop()

    def _agrees(self) -> bool:
        states = [_node(port).execute_command("CLUSTER INFO") for port in self.ports]
        return all(_fact(state, "cluster_state") == "ok" for state in states) and all(
            _fact(state, "cluster_known_nodes") == str(_NODES) for state in states
        )


def _fact(answer: Any, name: str) -> str:
    if isinstance(answer, bytes):
        lines = answer.decode().splitlines()
        answer = dict(line.split(":", 1) for line in lines if ":" in line)
    return str(answer[name])


class Redis(Store):
    """redis-py on one Redis: MSET and MGET."""

    name = "redis"

    def __init__(self, port: int) -> None:
        self._client: Any = _node(port)

    def put(self, pairs: Pairs) -> None:
        """Store all pairs with one MSET."""
        self._client.mset(pairs)

    def get(self, keys: Sequence[str]) -> Any:
        """Look up all keys with one MGET."""
        return self._client.mget(keys)

    def get_one(self, key: str) -> bytes | None:
        """Look up a key."""
        value: bytes | None = self._client.get(key)
        return value

    def close(self) -> None:
        """Close the client."""
        self._client.close()


class RedisClustered(Store):
    """redis-py on Redis Cluster: an MSET or MGET per slot, in a pipeline per node."""

    name = "redis cluster"

    def __init__(self, port: int) -> None:
        self._client: Any = redis.RedisCluster(host="127.0.0.1", port=port)

    def put(self, pairs: Pairs) -> None:
        """Store all pairs."""
        self._client.mset_nonatomic(pairs)

    def get(self, keys: Sequence[str]) -> Any:
        """Look up all keys."""
        return self._client.mget_nonatomic(keys)

    def get_one(self, key: str) -> bytes | None:
        """Look up a key."""
        value: bytes | None = self._client.get(key)
        return value

    def close(self) -> None:
        """Close the client."""
        self._client.close()
