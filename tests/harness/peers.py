"""Peers as real processes that tests start, stop, kill and freeze."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from dstash import Client
from tests.harness.devcluster import clean_environment
from tests.harness.ports import free_ports
from tests.harness.process import expirable
from tests.harness.waiting import PATIENCE, wait_until

DSTASH_PEER = str(Path(sys.executable).parent / "dstash-peer")


class Peer:
    """A peer and its data directory. A restart uses the same port by default."""

    def __init__(self, name: str, folder: Path, options: list[str]) -> None:
        self.name = name
        self.data = folder / name
        self.log = folder / f"{name}.log"
        self.options = options
        self.command = [DSTASH_PEER]
        self.port, self.http_port = free_ports(2)
        #: The address that it listens on.
        self.bind = "127.0.0.1"
        #: The port of its proxy, if there is one.
        self.front = 0
        #: The start of the command line, such as a namespace to run in.
        self.before: list[str] = []
        #: Settings, as environment variables.
        self.environ: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Its address for clients."""
        return f"tcp://{self.bind}:{self.port}"

    def start(self) -> None:
        """Start the process, which is ready after ``wait_ready``."""
        command = [*self.before, *self.command, str(self.data), self.bind, str(self.port)]
        command += ["--http-port", str(self.http_port), "--log-format", "json", *self.options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                expirable(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment() | self.environ,
            )

    def move(self) -> None:
        """Use other ports from the next start."""
        self.port, self.http_port = free_ports(2)

    def runs(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> int:
        """Stop the process with SIGTERM; return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_end()

    def kill(self) -> None:
        """Kill the process with SIGKILL, as a crash would."""
        self.signal(signal.SIGKILL)
        self.wait_end()

    def freeze(self) -> None:
        """Freeze the process; its sockets stay open."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def wait_end(self) -> int:
        """Wait until the process ends; return the exit code."""
        assert self.process is not None
        return self.process.wait(timeout=PATIENCE)

    def page(self, path: str) -> dict[str, Any]:
        """Return the JSON of an HTTP page; empty if the peer does not answer."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as refusal:
            return dict(json.loads(refusal.read()))
        except OSError:
            return {}

    def lookups(self) -> int:
        """Return the number of look-ups that it received."""
        return int(self.page("/status")["counts"].get("Lookup", 0))

    def is_ready(self) -> bool:
        """Whether it reports that it serves requests."""
        assert self.runs(), f"{self.name} ended: {self.log.read_text()[-2000:]}"
        return bool(self.page("/readyz").get("ready"))

    def wait_ready(self) -> None:
        """Wait until it reports that it serves requests."""
        wait_until(self.is_ready, PATIENCE, f"{self.name} is ready (see {self.log})")

    def wait_logged(self, text: str) -> None:
        """Wait until a text is in its log, which a thread of its own writes."""
        what = f"{self.name} logs {text!r} (see {self.log})"
        wait_until(lambda: text in self.log.read_text(), PATIENCE, what)


class Peers:
    """The peers of a cluster, and a client for the test.

    Args:
        folder: for data and logs.
        where: options of peers for the membership.
        options: for every peer.
        finder: settings of a client for the membership.
    """

    def __init__(
        self,
        folder: Path,
        where: list[str],
        *options: str,
        finder: dict[str, Any],
        cluster: str = "dstash",
    ) -> None:
        self.folder = folder
        self.cluster = cluster
        self.options = [*where, "--cluster", cluster, *options]
        #: Settings of every peer, as environment variables.
        self.environ: dict[str, str] = {}
        self.all: dict[str, Peer] = {}
        self._finder = finder
        self._clients: list[Client] = []

    @classmethod
    def local(cls, folder: Path, *options: str) -> Self:
        """Return a cluster with the embedded membership."""
        where = ["--membership", "local", "--local-dir", str(folder / "membership")]
        return cls(folder, where, *options, finder={"local_dir": str(folder / "membership")})

    @classmethod
    def consul(cls, folder: Path, url: str, cluster: str, *options: str) -> Self:
        """Return a cluster on Consul."""
        where = ["--membership", "consul", "--consul", url]
        finder = {"consul": url, "cluster": cluster}
        return cls(folder, where, *options, cluster=cluster, finder=finder)

    def __getitem__(self, name: str) -> Peer:
        return self.all[name]

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close_clients()
        for peer in self.all.values():
            if peer.runs():
                peer.kill()

    def close_clients(self) -> None:
        """Close all clients: an unclosed client would look for a stopped peer for ever."""
        while self._clients:
            self._clients.pop().close()

    def form(self, *names: str, zones: str = "") -> None:
        """Start the first peers and wait until they serve."""
        for place, name in enumerate(names):
            more = ["--zone", zones[place]] if zones else ["--zone", f"zone-{name}"]
            self.start(name, "--min-peers", str(len(names)), *more)
        for name in names:
            self[name].wait_ready()

    def start(self, name: str, *options: str) -> Peer:
        """Start a new peer, in its own zone unless the options name a zone."""
        zone = [] if "--zone" in options else ["--zone", f"zone-{name}"]
        peer = self.make(name, [*self.options, *zone, *options])
        self.all[name] = peer
        peer.start()
        return peer

    def make(self, name: str, options: list[str]) -> Peer:
        """Return a new peer that is not started."""
        peer = Peer(name, self.folder, options)
        peer.environ |= self.environ
        return peer

    def client(self, **settings: Any) -> Client:
        """Return a new client with the first addresses of all peers."""
        seeds = [peer.address for peer in self.all.values()]
        given: dict[str, Any] = {"timeout": 20.0, "cluster": self.cluster} | settings
        client = Client(*seeds, **given)
        self._clients.append(client)
        return client

    def finder(self) -> Client:
        """Return a new client that finds the peers through the membership."""
        client = Client(**self._finder, timeout=20.0)
        self._clients.append(client)
        return client

    def settle(self, client: Client) -> None:
        """Wait until no topology change is in progress."""
        wait_until(
            lambda: client.topology().change is None, PATIENCE, "the change of placement has ended"
        )

    def members(self, client: Client) -> set[str]:
        """Return the ids of the members."""
        return {member.id for member in client.topology().members}
