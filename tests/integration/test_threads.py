"""Threads of real peers that end or hang, and a log that cannot be written."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dstash import Client
from tests.harness.load import Load
from tests.harness.peers import DSTASH_PEER, Peer, Peers
from tests.harness.waiting import stays_true, wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

ROOT = Path(__file__).resolve().parent.parent.parent


def broken(peer: Peer, fault: str) -> Peer:
    """Prepare a peer that is not started with a fault, which SIGUSR1 begins."""
    peer.command = [sys.executable, "-m", "tests.harness.broken_peer", fault, DSTASH_PEER]
    peer.environ["PYTHONPATH"] = str(ROOT)
    return peer


def restart_broken(peers: Peers, name: str, fault: str) -> Peer:
    """Restart a peer with a fault that has not begun."""
    peer = peers[name]
    assert peer.stop() == 0
    broken(peer, fault).start()
    peer.wait_ready()
    return peer


def repair(peer: Peer) -> None:
    """Start a peer that has ended without its fault."""
    peer.command = [DSTASH_PEER]
    peer.start()
    peer.wait_ready()


def events(peer: Peer) -> list[dict[str, object]]:
    """Return the log of a peer."""
    lines = peer.log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def add_member(peers: Peers, name: str) -> None:
    """Change the topology."""
    peers.start(name).wait_ready()
    client = peers.client()
    peers.settle(client)
    assert name in peers.members(client)


def ended_at_connection(peer: Peer) -> bool:
    """Connect to the HTTP port; returns whether the peer has ended."""
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", peer.http_port), timeout=5).close()
    return not peer.runs()


@pytest.mark.parametrize("thread", ["membership", "committer", "http", "connections", "watchdog"])
def test_peer_stops_with_one_line_when_a_thread_ends(own: Peers, thread: str) -> None:
    peer = restart_broken(own, "b", f"end:{thread}")
    with Load(own.client()) as load:  # the committer gets the exception at its next commit
        peer.signal(signal.SIGUSR1)
        if thread == "http":  # it gets the exception at a connection
            wait_until(lambda: ended_at_connection(peer), 30, "the thread ends")
        assert peer.wait_end() == 1
        wait_until(lambda: load.operations > 20 or load.errors, 60, "more calls")
    last = peer.log.read_text().splitlines()[-1]
    assert last.startswith(f"dstash-peer: thread {thread} has ended (SystemExit")
    (reported,) = [event for event in events(peer) if event["event"] == "a thread has ended"]
    assert reported["thread"] == thread
    assert "exception" in reported
    repair(peer)
    load.check(own.client())


def test_membership_thread_survives_a_failed_round(own: Peers) -> None:
    peer = restart_broken(own, "b", "iteration")
    peer.signal(signal.SIGUSR1)
    problem = "the membership thread failed and tries again: ZeroDivisionError"
    for page in ("/readyz", "/status"):
        wait_until(lambda: problem in str(peer.page(page)["alerts"]), 30, page)  # noqa: B023
    wait_until(lambda: problem in health(own), 30, "dstash health says so")
    time.sleep(3)  # many iterations, all of which fail
    failed = [
        event
        for event in events(peer)
        if event["event"] == "an iteration of the membership thread failed"
    ]
    assert len(failed) == 1, "a failure of one kind is logged once"
    peer.signal(signal.SIGUSR1)
    wait_until(lambda: peer.page("/readyz")["alerts"] == [], 30, "the trouble is over")
    add_member(own, "d")


def health(peers: Peers) -> str:
    """Return the output of ``dstash health``."""
    dstash = Path(sys.executable).parent / "dstash"
    seeds = ",".join(peer.address for peer in peers.all.values())
    done = subprocess.run([dstash, "--peers", seeds, "health"], capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("thread", ["MainThread", "membership", "committer"])
def test_stop_is_bounded_when_a_thread_hangs(own: Peers, thread: str) -> None:
    peer = own["b"]
    peer.environ["DSTASH_DRAIN_SECONDS"] = "1"
    restart_broken(own, "b", f"hang:{thread}")
    peer.signal(signal.SIGUSR1)
    with Load(own.client()) as load:
        wait_until(lambda: load.operations > 20 or load.errors, 60, "calls")
        began = time.monotonic()
        peer.signal(signal.SIGTERM)
        peer.wait_end()
        assert time.monotonic() - began < 10
    repair(peer)
    load.check(own.client())


def test_hanging_loop_fails_the_health_check(own: Peers) -> None:
    peer = restart_broken(own, "b", "hang:MainThread")
    peer.signal(signal.SIGUSR1)
    said = "thread MainThread has hung for"
    wait_until(lambda: said in str(peer.page("/healthz").get("why")), 30, "the health says so")
    reported = wait_until(
        lambda: [event for event in events(peer) if event["event"] == "a thread hangs"],
        10,
        "it is logged",
    )
    assert "broken_peer" in str(reported[0]["stack"])
    peer.kill()


def test_topology_that_cannot_be_stored_is_used(own: Peers) -> None:
    peer = restart_broken(own, "b", "unkept")
    peer.signal(signal.SIGUSR1)
    add_member(own, "d")
    epoch = own.client().topology().epoch
    wait_until(lambda: peer.page("/status")["epoch"] >= epoch, 30, "b uses the newest epoch")
    used = peer.page("/status")["epoch"]
    assert f"the topology of epoch {used} cannot be stored" in str(peer.page("/readyz"))
    peer.signal(signal.SIGUSR1)
    wait_until(lambda: peer.page("/readyz")["alerts"] == [], 30, "it was stored later")


class TestUnwritableLog:
    def start(self, peers: Peers, peer: Peer, stderr: int) -> None:
        """Start a peer whose stderr is not a file."""
        command = [DSTASH_PEER, str(peer.data), "127.0.0.1", str(peer.port)]
        command += ["--http-port", str(peer.http_port), "--log-level", "debug", *peer.options]
        peer.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr)

    def check(self, peers: Peers, peer: Peer) -> None:
        """Check that the peer follows a topology change and stops on SIGTERM."""
        add_member(peers, "d")
        epoch = peers.client().topology().epoch  # status() may ask a peer with an older topology
        wait_until(lambda: peer.page("/status")["epoch"] >= epoch, 30, "b is on the newest epoch")
        began = time.monotonic()
        assert peer.stop() == 0
        assert time.monotonic() - began < 10

    def test_full_log_pipe_does_not_block_the_peer(self, own: Peers) -> None:
        reading, writing = os.pipe()
        while True:
            os.set_blocking(writing, False)
            try:
                os.write(writing, b"x" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(writing, True)
        assert own["b"].stop() == 0
        self.start(own, own["b"], writing)
        os.close(writing)
        own["b"].wait_ready()
        self.check(own, own["b"])
        os.close(reading)

    def test_broken_log_pipe_does_not_stop_the_peer(self, own: Peers) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        assert own["b"].stop() == 0
        self.start(own, own["b"], writing)
        os.close(writing)
        own["b"].wait_ready()
        self.check(own, own["b"])

    def test_log_on_full_disk_does_not_stop_the_peer(self, own: Peers) -> None:
        full = os.open("/dev/full", os.O_WRONLY)
        assert own["b"].stop() == 0
        self.start(own, own["b"], full)
        os.close(full)
        own["b"].wait_ready()
        self.check(own, own["b"])


def test_clients_of_a_healthy_cluster_see_no_errors(trio: Peers) -> None:
    client: Client = trio.client()
    stays_true(
        lambda: not any(member["alerts"] for member in client.status()["members"]),
        2,
        "no member has a trouble",
    )
