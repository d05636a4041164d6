"""CPU time slices of the threads of a peer."""

from __future__ import annotations

from pathlib import Path

from dstash.cpu_scheduling import BRIEF, LONG, current_time_slice
from tests.harness.kernel import HAS_TIME_SLICES
from tests.harness.peers import PATIENCE, Peer, Peers
from tests.harness.waiting import wait_until


def loop_of(peer: Peer) -> float | None:
    """Return the time slice of the thread that answers requests."""
    assert peer.process is not None
    return current_time_slice(peer.process.pid)


def all_of(peer: Peer) -> set[float | None]:
    """Return the time slices of all threads."""
    assert peer.process is not None
    tasks = Path(f"/proc/{peer.process.pid}/task")
    return {current_time_slice(int(path.name)) for path in tasks.iterdir()}


def test_candidate_uses_long_time_slices_until_it_serves_reads(tmp_path: Path) -> None:
    usual = current_time_slice()
    with Peers.local(tmp_path, "--replicas", "1") as peers:
        peers.form("a")
        assert loop_of(peers["a"]) == usual
        assert all_of(peers["a"]) == ({BRIEF, usual, LONG} if HAS_TIME_SLICES else {usual})
        client = peers.client()
        waiting = peers.start("b", "--join", "manual")
        is_candidate = lambda: "b" in client.status()["candidates"]  # noqa: E731
        wait_until(is_candidate, PATIENCE, "b waits to be added")
        expected = LONG if HAS_TIME_SLICES else usual
        wait_until(lambda: loop_of(waiting) == expected, PATIENCE, "it lets others in")
        client.admin.add(["b"])
        wait_until(lambda: client.topology().change is None, PATIENCE, "b has its share")
        wait_until(lambda: loop_of(waiting) == usual, PATIENCE, "b is read from")
        assert loop_of(peers["a"]) == usual
