"""Which threads of a peer the kernel lets in first."""

from __future__ import annotations

from pathlib import Path

from dstash.cpu_scheduling import BRIEF, LONG, current_time_slice
from tests.harness.peers import PATIENCE, Peer, Peers
from tests.harness.turns import KERNEL_KNOWS
from tests.harness.waiting import wait_until


def loop_of(peer: Peer) -> float | None:
    """Return the turns of the thread that answers."""
    assert peer.process is not None
    return current_time_slice(peer.process.pid)


def all_of(peer: Peer) -> set[float | None]:
    """Return the turns of all its threads."""
    assert peer.process is not None
    tasks = Path(f"/proc/{peer.process.pid}/task")
    return {current_time_slice(int(one.name)) for one in tasks.iterdir()}


def test_a_peer_that_nobody_reads_from_lets_others_in(tmp_path: Path) -> None:
    usual = current_time_slice()
    with Peers.local(tmp_path, "--replicas", "1") as peers:
        peers.form("a")
        assert loop_of(peers["a"]) == usual
        assert all_of(peers["a"]) == ({BRIEF, usual, LONG} if KERNEL_KNOWS else {usual})
        client = peers.client()
        waiting = peers.start("b", "--join", "manual")
        is_candidate = lambda: "b" in client.status()["candidates"]  # noqa: E731
        wait_until(is_candidate, PATIENCE, "b waits to be added")
        expected = LONG if KERNEL_KNOWS else usual
        wait_until(lambda: loop_of(waiting) == expected, PATIENCE, "it lets others in")
        client.admin.add(["b"])
        wait_until(lambda: client.topology().change is None, PATIENCE, "b has its share")
        wait_until(lambda: loop_of(waiting) == usual, PATIENCE, "b is read from")
        assert loop_of(peers["a"]) == usual
