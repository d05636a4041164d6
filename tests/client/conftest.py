"""Fixtures: a cluster of three peers for the tests of the clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dstash import Client
from tests.harness.peers import Peers


@pytest.fixture(scope="package")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Three peers with three copies of each key. Each test uses its own index."""
    with Peers.local(tmp_path_factory.mktemp("peers")) as made:
        made.form("a", "b", "c")
        yield made


@pytest.fixture(scope="package")
def seeds(peers: Peers) -> list[str]:
    """The addresses of the peers."""
    return [peer.address for peer in peers.all.values()]


@pytest.fixture(scope="package")
def blocking(peers: Peers) -> Client:
    """A blocking client, closed at the end."""
    return peers.client()


@pytest.fixture
def index(request: pytest.FixtureRequest) -> str:
    """The name of an index that no other test uses."""
    name = "".join(char if char.isalnum() else "-" for char in request.node.name)
    return f"{name[:40]}-{abs(hash(request.node.nodeid)) % 10**9}"
