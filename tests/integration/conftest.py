"""Fixtures: clusters of real processes. Tests with faults use their own cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.leaks import no_leaks
from tests.harness.peers import Peers

__all__ = ["no_leaks"]


@pytest.fixture(scope="package")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Three peers that the tests of this folder share; no test stops them."""
    with Peers.local(tmp_path_factory.mktemp("trio")) as peers:
        peers.form("a", "b", "c")
        yield peers


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Peers]:
    """Three peers for one test."""
    with Peers.local(tmp_path) as peers:
        peers.form("a", "b", "c")
        yield peers
