"""A repair: every record checked, every partition compared with every replica, at once.

What the slow scrub and the rounds of comparison do little by little, for an operator who wants to
know now (Cassandra calls it ``nodetool repair``).
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
    """Check what this peer holds, and make it equal to the other live replicas of it."""
    held = [number for number in range(PARTITIONS) if replica.is_reader(replica.me, number)]
    others = sorted(replica.view().alive & replica.view().members.keys() - {replica.me})
    progress = replica.repair
    progress.begin(len(held) * (1 + len(others)), replica.repaired)
    for partition in held:
        yield from replica.local_partitions.scrub(partition)
        progress.left -= 1
        yield Pause()
    for other in others:
        try:
            yield from compare_with(replica, other)
        except DStashError:
            progress.failed += 1  # it went away: the next round of comparison sees
        progress.left -= len(held)
    progress.end()
