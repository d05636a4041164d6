"""A real Consul: one agent without a disk, or a cluster of three servers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from tests.harness.ports import free_ports
from tests.harness.process import expirable
from tests.harness.waiting import PATIENCE, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
_PORTS = ("http", "server", "serf-lan", "serf-wan")


def consul_binary() -> str:
    """Return the path of a Consul binary. Fails with the reason if there is none."""
    done = subprocess.run([ROOT / "bin" / "get-consul"], capture_output=True, text=True)
    assert done.returncode == 0, f"the tests need Consul: {done.stderr.strip()}"
    return done.stdout.strip()


class ConsulAgent:
    """One Consul process. Ports and address stay the same over a restart.

    Args:
        folder: for the log, and the data of a server.
        options: of ``consul agent``; without any, it is a development agent, which keeps its data
        in memory.
        host: the address it listens on.
        ports: HTTP, server RPC, serf LAN and serf WAN; free ports by default.
        token: an ACL token for the requests of tests.
        ca_file: if given, the agent serves only HTTPS, which its options must state too.
    """

    def __init__(
        self,
        folder: Path,
        options: Sequence[str] = ("-dev",),
        host: str = "127.0.0.1",
        ports: Sequence[int] | None = None,
        token: str = "",
        ca_file: Path | None = None,
    ) -> None:
        self.host = host
        self.ports = dict(zip(_PORTS, ports or free_ports(len(_PORTS), host), strict=True))
        scheme = "https" if ca_file else "http"
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{scheme}://{shown}:{self.ports['http']}"
        self._ca_file = str(ca_file) if ca_file else True
        self.log = folder / f"consul-{self.ports['http']}-{host}.log"
        self._headers = {"X-Consul-Token": token} if token else {}
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [
            *expirable([consul_binary(), "agent", *options]),
            *(part for name, port in self.ports.items() for part in (f"-{name}-port", str(port))),
            *(("-http-port", "-1", "-https-port", str(self.ports["http"])) if ca_file else ()),
            *("-dns-port", "-1", "-grpc-port", "-1"),
            *(
                "-bind",
                host,
                "-client",
                host,
                "-node",
                f"node-{host.replace(':', '-')}-{self.ports['http']}",
            ),
        ]

    def start(self) -> None:
        """Start the process, which is ready after ``wait_ready``."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_ready(self) -> None:
        """Wait until there is a leader and the node is healthy."""
        wait_until(self._is_ready, PATIENCE, f"Consul is up (see {self.log})")

    def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop and start the process, and wait until it is ready."""
        self.stop()
        self.start()
        self.wait_ready()

    def freeze(self) -> None:
        """Freeze the process: its sockets stay open, and it does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # all of its threads

    def thaw(self) -> None:
        """Resume a frozen process."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def get(self, path: str) -> Any:
        """Return the JSON at ``/v1/<path>`` of the HTTP API; None for status 404."""
        answer = self._request("GET", path)
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return answer.json()

    def put(self, path: str, data: str = "") -> Any:
        """Send a request to the HTTP API."""
        answer = self._request("PUT", path, data)
        answer.raise_for_status()
        return answer.json() if answer.text.strip() else None

    def _request(self, method: str, path: str, data: str = "") -> requests.Response:
        return requests.request(
            method,
            f"{self.url}/v1/{path}",
            data=data,
            headers=self._headers,
            timeout=PATIENCE,
            verify=self._ca_file,
        )

    @property
    def is_leader(self) -> bool:
        """Whether this server is the leader."""
        return bool(self.get("status/leader") == f"{self.host}:{self.ports['server']}")

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"Consul ended by itself: see {self.log}"
        try:
            checks = self.get("health/state/passing")
        except requests.RequestException:
            return False
        name = self._command[-1]
        return any(check["CheckID"] == "serfHealth" and check["Node"] == name for check in checks)


class ConsulCluster:
    """Three servers, at 127.0.0.1 to 127.0.0.3, that elect a leader."""

    def __init__(self, folder: Path) -> None:
        hosts = [f"127.0.0.{number}" for number in (1, 2, 3)]
        ports = free_ports(len(_PORTS))
        join = [part for host in hosts for part in ("-retry-join", f"{host}:{ports[2]}")]
        quick = ["-hcl", "performance { raft_multiplier = 1 }", "-retry-interval", "1s"]
        self.servers = [
            ConsulAgent(
                folder,
                ["-server", "-bootstrap-expect", "3", *join, *quick, "-data-dir", str(folder / h)],
                host=h,
                ports=ports,
            )
            for h in hosts
        ]

    def start(self) -> None:
        """Start all three servers, and wait until they have a leader and know each other."""
        for server in self.servers:
            server.start()
        for server in self.servers:
            server.wait_ready()

    def stop(self) -> None:
        """Kill all three servers."""
        for server in self.servers:
            server.stop()

    def leader(self) -> ConsulAgent:
        """Return the leader."""
        return next(server for server in self.servers if server.is_leader)

    def followers(self) -> list[ConsulAgent]:
        """Return the followers."""
        return [server for server in self.servers if not server.is_leader]
