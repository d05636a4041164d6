"""Memberships of either backend, in this process or in another process that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from dstash.cluster.membership.consul.membership import ConsulMembership
from dstash.cluster.membership.interface import Membership, Token
from dstash.cluster.membership.local.membership import LocalMembership
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.topology import Topology
from tests.harness.process import expirable

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Place:
    """The location of a membership: a backend, its directory or URL, and the cluster."""

    backend: str
    where: str
    cluster: str

    def open(self) -> Membership:
        """Open it in this process."""
        if self.backend == "local":
            return LocalMembership(Path(self.where), self.cluster)
        return ConsulMembership(self.where, self.cluster)


def announcement(peer: str, port: int = 5000, state: str = "") -> Announcement:
    """Return an announcement of a peer."""
    address = f"tcp://127.0.0.1:{port}"
    return Announcement(peer, address, f"store-of-{peer}", "zone", 1.5, "http://x:1", state)


def topology(place: Place, epoch: int = 1) -> Topology:
    """Return a topology without members."""
    return Topology(cluster=place.cluster, cluster_id="id", epoch=epoch)


class Actor:
    """A membership in a separate process. Every call waits for its answer."""

    def __init__(self, place: Place) -> None:
        self._process = subprocess.Popen(
            expirable([sys.executable, "-m", __name__, json.dumps(asdict(place))]),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def announce(self, peer: str) -> str:
        """Return the name of the error, or an empty string."""
        return str(self._call("announce", peer))

    def acquire(self, name: str) -> bool:
        """Return whether the lock was taken."""
        return bool(self._call("acquire", name))

    def create(self, epoch: int) -> bool:
        """Return whether the topology was created."""
        return bool(self._call("create", epoch))

    def ask(self, *request: object) -> None:
        """Send a request; ``answer`` waits for the reply."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return the reply."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def kill(self) -> None:
        """Kill the process with SIGKILL, as a crash would."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill the process and close the pipes."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _call(self, *request: object) -> Any:
        self.ask(*request)
        return self.answer()


def _act(membership: Membership, place: Place, request: list[Any]) -> Any:
    action, argument = request
    if action == "acquire":
        return membership.acquire(argument)
    if action == "create":
        return membership.compare_and_set(topology(place, argument), Token(0))
    try:
        membership.announce(announcement(argument))
    except Exception as error:
        return type(error).__name__
    return ""


def _serve(place: Place) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    membership = place.open()
    for line in sys.stdin:
        print(json.dumps(_act(membership, place, json.loads(line))), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve(Place(**json.loads(sys.argv[1])))
