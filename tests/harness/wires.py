"""The network between real processes: each peer has a TCP proxy that can block traffic.

Peers advertise the address of their proxy, so all connections to a peer go through it. The proxy
finds the process of a connection in ``/proc``. While a direction between two processes is cut, it
holds their bytes back, as a network does: bytes are delayed, not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dstash import Client
from tests.harness.peers import Peer, Peers
from tests.harness.ports import free_port

#: The sender of connections that no peer made.
CLIENT = "client"

#: How long a connection to a stopped peer stays open. A refused socket retries at growing
#: intervals; a socket that is accepted and closed starts with the shortest interval each time.
_DOWN_SECONDS = 0.5

#: A line of the kernel's table: local port and inode of an open connection.
_ESTABLISHED = re.compile(rb"\d+: [0-9A-F]+:([0-9A-F]{4}) \S+ 01 \S+ \S+ \S+ +\d+ +\d+ (\d+)")


class Wires:
    """The proxies.

    Args:
        pids: returns the process of each peer.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._owners = Owners(pids)
        self._ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._cut: dict[tuple[str, str], asyncio.Event] = {}
        #: Bytes in each direction.
        self.moved: Counter[tuple[str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def lead_to(self, peer: str, port: int) -> int:
        """Return the port of the proxy of a peer that listens on ``port``."""
        if peer not in self._ports:
            self._ports[peer] = free_port()
            self._run(self._listen(peer, self._ports[peer], port))
        return self._ports[peer]

    def cut(self, ways: Iterable[tuple[str, str]]) -> None:
        """Block traffic from the first to the second of each pair."""
        self._run(self._cut_each(list(ways)))

    def restore(self) -> None:
        """Unblock all traffic."""
        self._run(self._heal_all())

    def close(self) -> None:
        """Break all connections."""
        self.restore()
        self._run(self._end_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _run(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)  # type: ignore[arg-type]

    async def _listen(self, peer: str, port: int, target: int) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.CancelledError):  # at the end of the test
                await self._join(peer, target, reader, writer)

        self._servers.append(await asyncio.start_server(connected, "127.0.0.1", port))

    async def _join(
        self,
        peer: str,
        target: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        ends = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", target)
            ends.append(back)
            source = await self._owners.of(writer.get_extra_info("peername")[1])
            await self._pump_both((reader, back, (source, peer)), (there, writer, (peer, source)))
        except OSError:  # the peer is down, and the direction is cut
            await asyncio.sleep(_DOWN_SECONDS)
        finally:
            for end in ends:
                end.close()

    async def _pump_both(self, *ways: tuple[Any, Any, tuple[str, str]]) -> None:
        tasks = [asyncio.create_task(self._pump(*security)) for security in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        security: tuple[str, str],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                self.moved[security] += len(data)
                while (repaired := self._cut.get(security)) is not None:
                    await repaired.wait()
                writer.write(data)
                await writer.drain()

    async def _cut_each(self, ways: list[tuple[str, str]]) -> None:
        for security in ways:
            self._cut.setdefault(security, asyncio.Event())

    async def _heal_all(self) -> None:
        cut, self._cut = self._cut, {}
        for repaired in cut.values():
            repaired.set()

    async def _end_all(self) -> None:
        for server in self._servers:
            server.close()
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # closed connections are gone after an iteration


class Owners:
    """Finds the process of a local connection by its port.

    Listing all connections takes the kernel milliseconds, so one list serves all callers that
    waited for it. Otherwise a slow proxy would lose connections, get new ones, and never catch up.

    Args:
        pids: returns the process of each peer.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self._owners: dict[int, str] = {}
        self._begun = self._ended = 0
        self._looking = asyncio.Lock()

    async def of(self, port: int) -> str:
        """Return the name of a peer, or ``CLIENT``."""
        needed = self._begun + 1
        async with self._looking:
            if self._ended < needed:
                self._begun += 1
                self._owners = await asyncio.to_thread(owners, self._pids())
                self._ended = self._begun
            return self._owners.get(port, CLIENT)


def owners(pids: Mapping[str, int]) -> dict[int, str]:
    """Return the process of each connection, by local port."""
    names: dict[bytes, str] = {}
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    names[os.fsencode(os.readlink(handle))] = name
    found = {}
    for table in ("/proc/net/tcp6", "/proc/net/tcp"):  # peers open sockets for IPv6
        for port, inode in _ESTABLISHED.findall(Path(table).read_bytes()):
            owner = names.get(b"socket:[%s]" % inode)
            if owner is not None:
                found[int(port, 16)] = owner
    return found


class WiredPeers(Peers):
    """A cluster in which every connection goes through a proxy."""

    def __init__(
        self,
        folder: Path,
        where: list[str],
        *options: str,
        finder: dict[str, str],
        cluster: str = "dstash",
    ) -> None:
        super().__init__(folder, where, *options, finder=finder, cluster=cluster)
        self.wires = Wires(self._pids)

    def _pids(self) -> dict[str, int]:
        running = {name: peer.process for name, peer in self.all.items()}
        return {name: process.pid for name, process in running.items() if process is not None}

    def make(self, name: str, options: list[str]) -> Peer:
        """Return a peer with a proxy."""
        peer = super().make(name, options)
        peer.front = self.wires.lead_to(name, peer.port)
        peer.options += ["--advertise", f"127.0.0.1:{peer.front}"]
        return peer

    def client(self, **settings: Any) -> Client:
        """Return a new client with the addresses of the proxies."""
        seeds = [f"tcp://127.0.0.1:{peer.front}" for peer in self.all.values()]
        given: dict[str, Any] = {"timeout": 30.0, "cluster": self.cluster} | settings
        client = Client(*seeds, **given)
        self._clients.append(client)
        return client

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.wires.close()
