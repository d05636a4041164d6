"""The network between real processes: a TCP proxy before each peer, which can be cut.

Peers advertise the address of their proxy, so all that comes to a peer goes through it. The proxy
finds out whose connection it is (``/proc`` tells), and holds the bytes from one process to another
back while that way is cut, as a network does: what was sent is not lost, it does not arrive.
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

from dstash import Client
from tests.harness.peers import Peer, Peers
from tests.harness.ports import free_port

#: Whoever is none of the peers.
CLIENT = "client"


class Wires:
    """The proxies.

    Args:
        pids: returns the process of each peer.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self._ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._cut: dict[tuple[str, str], asyncio.Event] = {}
        #: How many bytes went each way.
        self.moved: Counter[tuple[str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def lead_to(self, peer: str, port: int) -> int:
        """Return the port of the proxy before a peer that listens on ``port``."""
        if peer not in self._ports:
            self._ports[peer] = free_port()
            self._run(self._listen(peer, self._ports[peer], port))
        return self._ports[peer]

    def cut(self, ways: Iterable[tuple[str, str]]) -> None:
        """Hold back what goes from one to another, for each pair."""
        self._run(self._cut_each(list(ways)))

    def heal(self) -> None:
        """Let everything through again."""
        self._run(self._heal_all())

    def close(self) -> None:
        """Break all connections."""
        self.heal()
        self._run(self._end_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _run(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)  # type: ignore[arg-type]

    async def _listen(self, peer: str, port: int, target: int) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.CancelledError):  # at the end
                await self._join(peer, target, reader, writer)

        self._servers.append(await asyncio.start_server(connected, "127.0.0.1", port))

    async def _join(
        self,
        peer: str,
        target: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", target)
        except BaseException as error:
            writer.close()
            if isinstance(error, OSError):
                return  # the peer is down: so is the way to it
            raise
        source = owner(writer.get_extra_info("peername")[1], self._pids())
        ways = [(reader, back, (source, peer)), (there, writer, (peer, source))]
        tasks = [asyncio.create_task(self._pump(*way)) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for end in (writer, back):
                end.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: tuple[str, str],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                self.moved[way] += len(data)
                while (healed := self._cut.get(way)) is not None:
                    await healed.wait()
                writer.write(data)
                await writer.drain()

    async def _cut_each(self, ways: list[tuple[str, str]]) -> None:
        for way in ways:
            self._cut.setdefault(way, asyncio.Event())

    async def _heal_all(self) -> None:
        cut, self._cut = self._cut, {}
        for healed in cut.values():
            healed.set()

    async def _end_all(self) -> None:
        for server in self._servers:
            server.close()
        mine = asyncio.current_task()
        tasks = [one for one in asyncio.all_tasks() if one is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def owner(port: int, pids: Mapping[str, int]) -> str:
    """Return whose end of a local connection has ``port``."""
    wanted = f"socket:[{_inode(port)}]"
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(handle) == wanted:
                        return name
    return CLIENT


def _inode(port: int) -> str:
    # There may be thousands of lines: no Python loop over them. Peers open sockets for IPv6.
    for table in ("/proc/net/tcp6", "/proc/net/tcp"):
        line = re.search(rb"\n *\d+: [0-9A-F]+:%04X .*" % port, Path(table).read_bytes())
        if line:
            return line[0].split()[9].decode()
    return ""


class WiredPeers(Peers):
    """A cluster in which every connection goes over a wire."""

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
        return {name: one.pid for name, one in running.items() if one is not None}

    def make(self, name: str, options: list[str]) -> Peer:
        """Return a peer behind a proxy."""
        peer = super().make(name, options)
        peer.front = self.wires.lead_to(name, peer.port)
        peer.options += ["--advertise", f"127.0.0.1:{peer.front}"]
        return peer

    def client(self, **settings: object) -> Client:
        """Return a new client that knows the proxies."""
        seeds = [f"tcp://127.0.0.1:{peer.front}" for peer in self.all.values()]
        client = Client(*seeds, **({"timeout": 30.0, "cluster": self.cluster} | settings))  # type: ignore[arg-type]
        self._clients.append(client)
        return client

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.wires.close()
