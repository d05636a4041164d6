"""Copies: how many replicas of each partition serve, and how many the cluster is to have.

``dstash status`` and the dashboard use these words for the same facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from dstash.cluster.topology.topology import Topology
from dstash.types import Level


class Copies(NamedTuple):
    """Partitions by the replicas that serve.

    Attributes:
        lost: partitions without a quorum.
        fewer: partitions that have a quorum but lack a replica.
        total: all partitions.
    """

    lost: int
    fewer: int
    total: int

    def alerts(self) -> Iterator[tuple[int, str]]:
        """Yield what is wrong, with its badness: 2 requests fail, 1 redundancy is lost."""
        total = f"{self.total:,} partitions"
        if self.lost:
            effect = "reads and writes of their keys fail until a replica is back"
            yield 2, f"quorum lost for {self.lost:,} of {total}: {effect}"
        if self.fewer:
            yield 1, f"{self.fewer:,} of {total} lack a replica; they still have a quorum"


def count_copies(sets: Iterable[tuple[int, int, int]], total: int) -> Copies:
    """Return how many partitions lack replicas.

    Args:
        sets: of each replica set, the replicas, those that serve, and the partitions.
        total: the number of partitions.
    """
    lost = fewer = 0
    for replicas, serving, partitions in sets:
        if serving < Level.QUORUM.needed(replicas):
            lost += partitions
        elif serving < replicas:
            fewer += partitions
    return Copies(lost, fewer, total)


def missing_copies(topology: Topology, candidates: Sequence[str] = ()) -> Iterator[str]:
    """Yield what is wrong if a formed cluster has fewer members than replicas.

    Args:
        topology: of the cluster.
        candidates: peers that wait to be added.
    """
    copies = len(topology.holders())
    missing = topology.replicas - copies
    if not topology.formed or missing <= 0:
        return
    if len(topology.after()) > copies:
        remedy = "a topology change adds them"
    elif candidates:
        remedy = f"add them: dstash cluster add {' '.join(candidates[:missing])}"
    else:
        remedy = f"start {missing} more"
    peers = "1 peer is" if missing == 1 else f"{missing} peers are"
    yield f"{copies} of {topology.replicas} copies: {peers} missing; {remedy}"
