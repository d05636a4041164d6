"""Fixtures: real clusters to save and to restore into, and ``dstash`` configured for them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dstash import Client
from tests.harness.devcluster import DevCluster, InProcess
from tests.harness.peers import Peers


class Cluster:
    """Peers, a client, and the command line."""

    def __init__(self, peers: Peers, folder: Path) -> None:
        self.peers = peers
        self.client: Client = peers.client()
        self.addresses = ",".join(peer.address for peer in peers.all.values())
        self._options = ["--peers", self.addresses]
        self._inside = InProcess(folder)
        self._outside = DevCluster(folder)

    def backup(self, *words: str) -> dict[str, Any]:
        """Run ``dstash backup``, which must succeed; return its JSON."""
        text = self._inside.out("-o", "json", *self._options, "backup", *words)
        return dict(json.loads(text))

    def refused(self, *words: str) -> tuple[int, list[str]]:
        """Run ``dstash backup``, which must fail; return the exit code and its error lines."""
        done = self._inside.run(*self._options, "backup", *words)
        assert done.returncode != 0
        return done.returncode, done.stderr.decode().splitlines()

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start ``dstash backup`` in a separate process."""
        command = [*self._options, "backup", *words]
        return self._outside.start(command, stderr=subprocess.PIPE)


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the backups."""
    return tmp_path_factory.mktemp("backups")


@pytest.fixture(scope="package")
def source(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Cluster]:
    """Three peers. Each test uses its own index."""
    with Peers.local(tmp_path_factory.mktemp("source")) as peers:
        peers.form("a", "b", "c")
        yield Cluster(peers, folder)


@pytest.fixture(scope="package")
def target(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Cluster]:
    """Another cluster: two peers, each with half of the data."""
    with Peers.local(tmp_path_factory.mktemp("target"), "--replicas", "1") as peers:
        peers.form("d", "e")
        yield Cluster(peers, folder)
