"""Checks of the invariants I1 to I6 of ARCHITECTURE.md on a cluster of real processes."""

from __future__ import annotations

from pathlib import Path

from dstash import Client
from dstash.limits import PARTITIONS
from dstash.store.digest import DigestKind
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Hello
from dstash.wire.packing import pack_partitions
from dstash.wire.replication import DigestsReply, DigestsRequest
from dstash.wire.sockets import Context, Link, Poller
from tests.harness.load import Load
from tests.harness.peers import Peer, Peers
from tests.harness.waiting import wait_until

#: Seconds after the end of faults until replicas must be equal (I4).
_HEALING = 60
_MAX_MEMORY = 512 * 1024 * 1024
_MAX_DESCRIPTORS = 250


def check_invariants(peers: Peers, load: Load, *names: str) -> None:
    """Check all invariants for the named peers (default: all). Ends the load and its client."""
    some = [peers[name] for name in names] or list(peers.all.values())
    i6_processes_survive(some)
    with peers.client(timeout=60.0) as client:
        i1_i2_i3_reads_are_right(load, client)
        load.client.close()
        i4_replicas_become_equal(some, client, peers.cluster)
    i5_resources_are_bounded(some)


def i1_i2_i3_reads_are_right(load: Load, client: Client) -> None:
    """I1: acked writes are readable. I2: nothing else is. I3: deleted values do not return.

    Each key has one writer, which knows its value: every read during the load was compared with it,
    and all keys are read again from all replicas.
    """
    load.check(client)


def i4_replicas_become_equal(some: list[Peer], client: Client, cluster: str) -> None:
    """I4: replicas of the same partition have equal digests within a minute."""

    def equal() -> bool:
        epoch = client.topology().epoch
        return len({digests(peer, cluster, epoch) for peer in some}) == 1

    wait_until(equal, _HEALING, "I4: replicas are equal")


def i5_resources_are_bounded(some: list[Peer]) -> None:
    """I5: memory and descriptors are limited; no write waits and no hint remains."""
    for peer in some:
        assert peer.process is not None
        assert resident(peer.process.pid) < _MAX_MEMORY, f"I5: memory of {peer.name}"
        handles = list(Path(f"/proc/{peer.process.pid}/fd").iterdir())
        assert len(handles) < _MAX_DESCRIPTORS, f"I5: descriptors of {peer.name}"
        wait_until(lambda peer=peer: is_idle(peer), 30, f"I5: {peer.name} has done all it had to")  # type: ignore[misc]


def i6_processes_survive(some: list[Peer]) -> None:
    """I6: every process runs and has logged no traceback."""
    for peer in some:
        said = peer.log.read_text()
        assert peer.runs(), f"I6: {peer.name} ended: {said[-1000:]}"
        assert "Traceback" not in said, f"I6: {peer.name}: {said[-3000:]}"


def is_idle(peer: Peer) -> bool:
    """Whether a peer has no waiting write, no hint and no corrupt record."""
    status = peer.page("/status")
    maintenance = status.get("maintenance", {"hints": 1})
    return not (status.get("waiting_bytes") or maintenance["hints"] or maintenance["corrupt"])


def resident(pid: int) -> int:
    """Return the memory of a process in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def digests(peer: Peer, cluster: str, epoch: int) -> bytes:
    """Return the digests of all partitions, as the peer reports them; empty for no answer."""
    context = Context()
    link = Link(context, peer.address, lambda: encode(Envelope(1, 0, 0, Hello(cluster))))
    try:
        poller = Poller()
        poller.watch(link.socket, link.monitor)
        question = DigestsRequest(pack_partitions(range(PARTITIONS)), kind=DigestKind.CONTENT)
        link.send(encode(Envelope(2, epoch, 0, question)))
        for _ in range(50):
            poller.wait(200)
            link.changes()
            while (parts := link.receive()) is not None:
                message = decode(parts).message
                if isinstance(message, DigestsReply):
                    return message.digests
    finally:
        link.close()
        context.close()
    return b""
