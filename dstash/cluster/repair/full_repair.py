"""Full repair: check every record, and compare every partition with every replica, at once.

The background scrub and anti-entropy do the same little by little. An operator starts a full
repair to have it done now (Cassandra: ``nodetool repair``).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from dstash.cluster.repair.antientropy import compare_with
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.errors import DStashError
from dstash.limits import PARTITIONS

Repairing = Generator[Effect, Any, None]


def repair(replica: Replica) -> Repairing:
    """Check all records of this peer, and make its partitions equal to the other live replicas."""
    held = [number for number in range(PARTITIONS) if replica.is_reader(replica.me, number)]
    peers = sorted(replica.view().alive & replica.view().members.keys() - {replica.me})
    progress = replica.repair
    progress.begin(len(held) * (1 + len(peers)), replica.repaired)
    for partition in held:
        yield from replica.local_partitions.digests.scrub(partition)
        progress.left -= 1
        yield Pause()
    for peer in peers:
        try:
            yield from compare_with(replica, peer)
        except DStashError:
            progress.failed += 1  # the peer became unavailable: anti-entropy tries again
        progress.left -= len(held)
    progress.end()
