"""dstash: three peers with the embedded membership, and the blocking client."""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bench.stores.servers import START_SECONDS, Server
from bench.stores.store import Pairs, Store, System
from dstash import Client, Level
from dstash.types import Durability
from tests.harness.ports import free_ports
from tests.harness.waiting import wait_until

INDEX = "bench"
_PEERS = 3


class DStashCluster(System):
    """Three peers with ``replicas`` copies of each key, which sync before each ack by default."""

    def __init__(
        self, folder: Path, replicas: int, durability: Durability = Durability.SYNC
    ) -> None:
        self.replicas = replicas
        self.durability = durability
        self._folder = folder
        self._confine: Sequence[Callable[[int], None]] = ()
        self._ports = free_ports(2 * _PEERS)
        self.peers: dict[int, Server] = {}

    @property
    def addresses(self) -> list[str]:
        """The addresses of the peers."""
        return [f"tcp://127.0.0.1:{self._ports[number]}" for number in range(_PEERS)]

    @property
    def servers(self) -> list[Server]:
        """The running peers."""
        return list(self.peers.values())

    def start(self) -> None:
        """Start three peers, which form a cluster."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in range(_PEERS):
            self.start_peer(number)
        for number in range(_PEERS):
            self.await_ready(number)

    def stop(self) -> None:
        """Stop them."""
        for number in list(self.peers):
            self.stop_peer(number)

    def restart_cold(self, confine: Sequence[Callable[[int], None]] = ()) -> None:
        """Stop the peers, drop their data from the page cache, and start them again.

        ``confine`` has a function for each peer, which is called with the id of its new process.
        """
        self.stop()
        for file in self._folder.glob("*/data.mdb"):
            with file.open("rb") as data:
                os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._confine = confine
        self.start()

    def start_peer(self, number: int) -> None:
        """Start a peer with its own directory and ports."""
        name = f"peer{number}"
        port, http = self._ports[number], self._ports[_PEERS + number]
        command = [str(Path(sys.executable).parent / "dstash-peer"), str(self._folder / name)]
        command += ["127.0.0.1", str(port), "--http-port", str(http), "--membership", "local"]
        command += ["--local-dir", str(self._folder / "membership")]
        command += ["--min-peers", str(_PEERS), "--replicas", str(self.replicas)]
        command += ["--durability", self.durability.value]
        shares = self._folder / "shares.toml"
        shares.write_text("share_reads = true\n")
        command += ["--config", str(shares)]
        confine = self._confine[number] if self._confine else None
        self.peers[number] = Server(name, command, self._folder, confine)

    def stop_peer(self, number: int) -> None:
        """Stop a peer."""
        self.peers.pop(number).stop()

    def await_ready(self, number: int) -> None:
        """Wait until a peer serves."""
        url = f"http://127.0.0.1:{self._ports[_PEERS + number]}/readyz"
        wait_until(lambda: self._is_ready(number, url), START_SECONDS, f"peer {number} is ready")

    def restart_seconds(self, number: int) -> float:
        """Restart a peer; return the seconds until it serves."""
        self.stop_peer(number)
        began = time.perf_counter()
        self.start_peer(number)
        self.await_ready(number)
        return time.perf_counter() - began

    def _is_ready(self, number: int, url: str) -> bool:
        self.peers[number].check()
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310  # HTTP, to loopback
                return True
        except (urllib.error.URLError, OSError):
            return False


class DStash(Store):
    """The blocking client with the same level for reads and writes.

    Args:
        name: of the store in reports.
        addresses: of the peers.
        level: of reads and writes.
        local_reads: ``auto`` reads the stores of the peers without a request.
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[str],
        level: str,
        local_reads: Literal["auto", "off"] = "off",
    ) -> None:
        self.name = name
        self._client = Client(
            *addresses,
            read=Level(level),
            write=Level(level),
            timeout=60,
            local_reads=local_reads,
        )

    def put(self, pairs: Pairs) -> None:
        """Store all pairs; every ack means that they are synced to disk."""
        self._client.batch_put(INDEX, pairs)

    def get(self, keys: Sequence[str]) -> Any:
        """Look up keys."""
        return self._client.batch_lookup(INDEX, keys)

    def get_one(self, key: str) -> bytes | None:
        """Look up a key."""
        value: bytes | None = self._client.lookup(INDEX, key)
        return value

    def put_one(self, key: str, value: bytes) -> None:
        """Store a pair."""
        self._client.put(INDEX, key, value)

    def fill(self, pairs: Pairs) -> None:
        """Store on all replicas: at level one, a busy replica may get a write much later."""
        self._client.batch_put(INDEX, pairs, write="all")

    def get_surely(self, keys: Sequence[str]) -> Any:
        """Look up on all replicas."""
        return self._client.batch_lookup(INDEX, keys, read="all")

    def settle(self) -> None:
        """Wait for the writes of replicas that the level does not wait for."""
        self._client.put(INDEX, "settle", None, write="all")

    def found(self, answer: Any, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Return the answer, which is already a mapping."""
        found: Mapping[str, bytes] = answer
        return found

    def close(self) -> None:
        """Close the client."""
        self._client.close()
