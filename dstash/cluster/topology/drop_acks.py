"""When a drop is acked: which members know it, and whether the topology has lost it.

The epoch alone does not show that a member knows a drop. If the membership loses the topology, or
an older copy is put back, before a member has read the entry, the members continue without it,
under a later epoch.
"""

from __future__ import annotations

from dstash.cluster.topology.drops import Drop
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.types import Level


class DropAcks:
    """The members that have confirmed a drop.

    A member that has confirmed it counts from then on: it restores a lost topology with the entry,
    and the entry is only removed when its records are.

    Args:
        ordered: the topology with the entry.
        drop: the entry.
    """

    def __init__(self, ordered: Topology, drop: Drop) -> None:
        self._ordered = ordered
        self._drop = drop
        self._without: set[str] = set()
        #: The members that have confirmed the drop.
        self.passed: set[str] = set()

    def take(self, peer: str, topology: Topology) -> None:
        """Take the topology by which a member serves requests."""
        if topology.cluster_id != self._ordered.cluster_id:
            return
        if any(drop.fulfils(self._drop) for drop in topology.drops):
            self.passed.add(peer)
        elif topology.epoch >= self._ordered.epoch:
            self._without.add(peer)

    def is_acked(self, view: View) -> bool:
        """Whether no quorum of a partition serves reads without the drop, now or later.

        So few members have not confirmed it that they are no majority, which could restore a lost
        topology without it.
        """
        rest = view.members.keys() - self.passed
        return 2 * len(rest) <= len(view.members) and not serves_quorum(view, self.passed)

    def is_lost(self, view: View) -> bool:
        """Whether a majority serves a later topology without the entry.

        It was lost with the topology; or it has ended since then, because all members have removed
        the records, if no answer came for that long.
        """
        without = view.members.keys() & self._without - self.passed
        return 2 * len(without) > len(view.members)


def serves_quorum(view: View, passed: set[str]) -> bool:
    """Whether in any partition the peers that are not in ``passed`` are enough for a quorum."""
    return any(
        len([peer for peer in peers if peer not in passed]) >= Level.QUORUM.needed(len(peers))
        for peers in {*view.before, *view.writers}
    )
