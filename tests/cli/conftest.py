"""Fixtures: a real cluster, and ``dstash`` run inside the process of the test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness.devcluster import DevCluster, InProcess


@pytest.fixture(scope="package")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """Three peers. Each test uses its own index."""
    cluster = DevCluster(tmp_path_factory.mktemp("dev"))
    try:
        cluster.out("dev", "up", "-n", "3")
        yield cluster
    finally:
        cluster.out("dev", "down")


@pytest.fixture
def inside(dev: DevCluster) -> InProcess:
    """The same cluster, for tests that need neither processes nor pipes."""
    return InProcess(dev.folder)


@pytest.fixture
def index(request: pytest.FixtureRequest) -> str:
    """The name of an index that no other test uses."""
    return str(request.node.name)[:64]


class Done(NamedTuple):
    """The result of a run of ``dstash``."""

    code: int
    out: str
    err: str


Dstash = Callable[..., Done]


@pytest.fixture
def dstash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Dstash:
    """Runs ``dstash`` in this process, in an empty folder, without ``DSTASH_*`` variables."""
    for name in ("DSTASH_PEERS", "DSTASH_CONFIG", "DSTASH_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Done:
        from dstash.cli.main import main

        monkeypatch.setattr(sys, "argv", ["dstash", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Done(int(str(caught.value.code or 0)), out, err)

    return run
