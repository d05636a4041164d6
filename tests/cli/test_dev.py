"""``dstash dev``: clusters start, stop, and start again with their data."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dstash.cli.commands import dev
from dstash.cli.commands.dev import _free as free_port
from dstash.cli.processes import DevCluster as State
from dstash.cli.processes import Process
from dstash.errors import DStashError
from tests.harness import devcluster
from tests.harness.devcluster import DevCluster, InProcess
from tests.harness.waiting import PATIENCE, wait_until


@pytest.fixture
def own(tmp_path: Path) -> Iterator[DevCluster]:
    """A folder for the test's own cluster, which is removed afterwards."""
    cluster = DevCluster(tmp_path)
    yield cluster
    cluster.run("dev", "down", "--purge")


def processes(cluster: DevCluster) -> list[Process]:
    return State(cluster.folder / ".dstash").load()


def test_dev_up_after_down_keeps_the_data(own: DevCluster) -> None:
    own.out("dev", "up", "-n", "2")
    own.out("put", "i", "k", "v")
    first = processes(own)
    assert all(process.runs() for process in first)
    done = own.run("dev", "down")
    assert (done.returncode, done.stderr) == (0, b"dstash: stopped 2 peers\n")
    assert not any(process.runs() for process in first)
    assert own.refusal("--timeout", "0.5", "get", "i", "k")[0] == 5
    said = own.run("dev", "up").stderr.decode()
    assert said.startswith("dstash: 2 peers are ready;")
    assert own.out("get", "i", "k") == "v"
    assert [peer.address for peer in processes(own)] == [peer.address for peer in first]


def test_dev_up_prints_the_dashboard_url(own: DevCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(devcluster.settings, "http_proxy", "http://127.0.0.1:1")  # not for loopback
    said = own.run("dev", "up", "-n", "1").stderr.decode()
    [address] = re.findall(r"^dstash: dashboard: (http://127\.0\.0\.1:\d+/)$", said, re.M)
    with urllib.request.urlopen(address, timeout=10) as page:  # noqa: S310  # it begins with http
        assert b"<title>dstash" in page.read()


def test_dev_up_starts_only_missing_peers(own: DevCluster) -> None:
    own.out("dev", "up", "-n", "2")
    first, second = processes(own)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not first.runs(), PATIENCE, "the peer is gone")
    states = json.loads(own.out("-o", "json", "dev", "status"))
    assert [state["state"] for state in states] == ["stopped", "ready"]
    assert own.run("health").returncode == 8
    # Peers of a larger cluster start as well.
    said = own.run("dev", "up", "-n", "1").stderr.decode()
    assert said.startswith("dstash: there are 2 peers, not 1, and all are started: ")
    again, same = processes(own)
    assert again.pid != first.pid
    assert same == second
    said = own.run("dev", "up", "-n", "3").stderr.decode()
    assert said.startswith("dstash: there are 2 peers, not 3: more are added\n")
    own.out("cluster", "watch")
    assert own.out("health", "--wait", "30") == "healthy\n"


def test_dev_up_leaves_out_a_removed_peer(own: DevCluster) -> None:
    own.out("dev", "up", "-n", "4")
    own.out("cluster", "remove", "peer4", "--yes", "--watch")
    said = own.run("dev", "up", "--wait", "30").stderr.decode()
    assert said.startswith("dstash: peer4 was removed from the cluster; it is not started any more")
    assert "3 peers are ready" in said
    # The next ones know that, and a new peer takes another name.
    assert own.run("dev", "up").stderr.startswith(b"dstash: 3 peers are ready;")
    states = json.loads(own.out("-o", "json", "dev", "status"))
    assert [state["state"] for state in states] == ["ready", "ready", "ready", "removed"]
    own.out("dev", "up", "-n", "4")
    assert [peer.id for peer in processes(own) if peer.runs()] == [
        "peer1",
        "peer2",
        "peer3",
        "peer5",
    ]
    own.out("dev", "down", "--purge")
    assert not (own.folder / ".dstash").exists()


def test_dev_up_prints_peers_for_other_directories(own: DevCluster, tmp_path: Path) -> None:
    line = own.out("dev", "up", "-n", "1", "--dir", str(tmp_path / "there"))
    name, _, peers = line.strip().removeprefix("export ").partition("=")
    done = own.run("put", "i", "k", "v", environ={name: peers})
    assert done.returncode == 0
    assert own.run("get", "i", "k", environ={name: peers}).stdout == b"v"
    assert own.out("dev", "status") == ""
    own.out("dev", "down", "--purge", "--dir", str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_dev_purge_keeps_foreign_files(own: DevCluster) -> None:
    own.out("dev", "up", "-n", "1")
    (own.folder / ".dstash/mine.txt").write_text("mine")
    own.out("dev", "down", "--purge")
    assert os.listdir(own.folder / ".dstash") == ["mine.txt"]


def test_dev_down_without_cluster_succeeds(own: DevCluster) -> None:
    done = own.run("dev", "down")
    assert (done.returncode, done.stderr) == (0, b"dstash: there is no dev cluster in .dstash\n")
    assert not (own.folder / ".dstash").exists()


def test_dev_up_avoids_a_port_in_use(own: DevCluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        # The state says that the peer had this port before.
        port = taken.getsockname()[1]
        (own.folder / ".dstash").mkdir()
        State(own.folder / ".dstash").save([Process("peer1", 0, 0, port, 0)])
        own.out("dev", "up", "-n", "1")
        assert processes(own)[0].port != port
        own.out("put", "i", "k", "v")


def test_dev_up_retries_when_a_port_is_taken_later(
    own: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = InProcess(own.folder)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answers = iter([port, 0])  # the first check finds it free
        monkeypatch.setattr(dev, "_free", lambda wished: next(answers, None) or free_port(wished))
        inside.out("dev", "up", "-n", "1")
    (process,) = processes(own)
    assert port not in (process.port, process.http_port)
    own.out("dev", "down")
    os.waitpid(process.pid, 0)  # it was started by this process, so it is a child of it


def test_dev_up_reports_why_a_peer_cannot_start(own: DevCluster) -> None:
    (own.folder / ".dstash").mkdir()
    (own.folder / ".dstash/peer1").write_text("a file where the data should be")
    code, text = own.refusal("dev", "up", "-n", "1")
    assert code == 1
    assert text.startswith("peer1 ended: ")
    assert "peer1.log" in text


def test_dev_refuses_to_run_twice_in_a_directory(tmp_path: Path) -> None:
    state = State(tmp_path)
    with state.locked(), pytest.raises(DStashError, match="another dstash dev"), state.locked():
        pass


def test_dev_reports_a_corrupt_state_file(own: DevCluster) -> None:
    (own.folder / ".dstash").mkdir()
    (own.folder / ".dstash/dev.json").write_text("{")
    code, text = own.refusal("dev", "down")
    assert code == 1
    assert "dev.json is corrupt" in text
    (own.folder / ".dstash/dev.json").unlink()


def test_dev_down_spares_a_foreign_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()", "/srv/dstash", "peer1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()  # until exec is done, it has no command line
        stat = Path(f"/proc/{other.pid}/stat").read_text()
        started = int(stat.rpartition(")")[2].split()[19])
        process = Process("peer1", other.pid, started, 1, 2)
        assert not process.runs()  # it is not a peer of dstash
        process.signal(signal.SIGKILL)
        assert not replace(process, started=started + 1).runs()
        assert other.poll() is None
        other.communicate(b"\n")
        assert other.returncode == 0
    assert not process.runs()
