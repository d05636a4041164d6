"""Comparison of the replicas of real peers (invariant I4), by their own digests."""

from __future__ import annotations

from dstash import Client
from dstash.cluster.topology.view import View
from dstash.limits import PARTITIONS
from dstash.store.digest import EMPTY
from dstash.wire.packing import pack_partitions, split_digests
from dstash.wire.replication import DigestsReply, DigestsRequest
from tests.harness.peers import PATIENCE, Peers
from tests.harness.waiting import wait_until
from tests.security.attackers import Attacker


def wait_until_equal(peers: Peers, client: Client) -> None:
    """Wait until all replicas of every partition have the same digest."""
    wait_until(lambda: not differing(peers, client), PATIENCE, "replicas are equal (I4)")


def differing(peers: Peers, client: Client) -> list[int]:
    """Return the partitions whose replicas differ; all partitions if a peer did not answer."""
    topology = client.topology()
    digests = {
        member.id: _digests(peers[member.id].address, topology.epoch) for member in topology.members
    }
    if not all(digests.values()):
        return list(range(PARTITIONS))
    rows = enumerate(View(topology).readers)
    return [number for number, row in rows if len({digests[peer][number] for peer in row}) > 1]


def wait_until_cleaned_up(peers: Peers, client: Client) -> None:
    """Wait until members have removed partitions that they no longer own."""
    wait_until(lambda: _foreign(peers, client) == 0, PATIENCE, "what moved away is dropped")


def _foreign(peers: Peers, client: Client) -> int:
    """Return how many partitions are on members that do not own them; all if a member is silent."""
    topology = client.topology()
    readers = View(topology).readers
    held = []
    for member in topology.members:
        digests = _digests(peers[member.id].address, topology.epoch) or [b""] * PARTITIONS
        pairs = zip(readers, digests, strict=True)
        held.append(len([row for row, digest in pairs if member.id not in row and digest != EMPTY]))
    return max(held)


def _digests(address: str, epoch: int) -> list[bytes]:
    with Attacker(address) as stranger:  # an open cluster answers every client
        answer = stranger.ask(DigestsRequest(pack_partitions(range(PARTITIONS))), epoch=epoch)
    return split_digests(answer.digests, PARTITIONS) if isinstance(answer, DigestsReply) else []
