"""Whether the replicas of real peers are equal: invariant I4, asked of the peers themselves."""

from __future__ import annotations

from dstash import Client
from dstash.cluster.answering import pack_partitions
from dstash.cluster.syncing import split_digests
from dstash.cluster.view import View
from dstash.limits import PARTITIONS
from dstash.store.digest import EMPTY
from dstash.wire.replication import AskDigests, DigestsAre
from tests.harness.peers import PATIENCE, Peers
from tests.harness.waiting import wait_until
from tests.security.attackers import Attacker


def wait_until_equal(peers: Peers, client: Client) -> None:
    """Wait until all replicas of every partition have the same digest."""
    wait_until(lambda: not differing(peers, client), PATIENCE, "replicas are equal (I4)")


def differing(peers: Peers, client: Client) -> list[int]:
    """Return the partitions whose replicas differ; all of them when a peer would not say."""
    topology = client.topology()
    digests = {one.id: _digests(peers[one.id].address, topology.epoch) for one in topology.members}
    if not all(digests.values()):
        return list(range(PARTITIONS))
    rows = enumerate(View(topology).readers)
    return [number for number, row in rows if len({digests[peer][number] for peer in row}) > 1]


def wait_until_vacated(peers: Peers, client: Client) -> None:
    """Wait until no member holds anything of partitions that are not its own any more."""
    wait_until(
        lambda: not _foreign(peers, client), PATIENCE, "what is not held any more is dropped"
    )


def _foreign(peers: Peers, client: Client) -> list[tuple[str, int]]:
    """Return (peer, partition) of what members have, and should not; all if one would not say."""
    topology = client.topology()
    readers = View(topology).readers
    foreign = []
    for one in topology.members:
        digests = _digests(peers[one.id].address, topology.epoch) or [b""] * PARTITIONS
        pairs = enumerate(zip(readers, digests, strict=True))
        foreign += [
            (one.id, number)
            for number, (row, digest) in pairs
            if one.id not in row and digest != EMPTY
        ]
    return foreign


def _digests(address: str, epoch: int) -> list[bytes]:
    with Attacker(address) as stranger:  # an open cluster tells everybody
        answer = stranger.ask(AskDigests(pack_partitions(range(PARTITIONS))), epoch=epoch)
    return split_digests(answer.digests, PARTITIONS) if isinstance(answer, DigestsAre) else []
