"""When a request about an index is acked: which members know it, and whether it was lost.

The epoch alone does not show that a member knows a request. If the membership loses the topology,
or an older copy is put back, before a member has read the entry, the members continue without it,
under a later epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from dstash.cluster.topology.drops import Drop
from dstash.cluster.topology.indexes.steps import has_settings
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View


class RequestAcks(ABC):
    """The members that have confirmed a request.

    A member that has confirmed it counts from then on: it has the entry on its disk, serves by it
    after a restart, and restores a lost topology with it.

    Args:
        requested: the topology with the entry.
    """

    def __init__(self, requested: Topology) -> None:
        self._requested = requested
        self._without: set[str] = set()
        #: The members that have confirmed the request.
        self.passed: set[str] = set()

    @abstractmethod
    def is_known_in(self, topology: Topology) -> bool:
        """Whether a topology has the entry, or another that takes its place."""

    def take(self, peer: str, topology: Topology, *, is_kept: bool) -> None:
        """Take the topology by which a member serves requests.

        Args:
            peer: the member.
            topology: its topology.
            is_kept: whether the member has it on its disk. Otherwise it does not confirm the
                request yet: a restart would take it back.
        """
        if topology.cluster_id != self._requested.cluster_id:
            return
        if self.is_known_in(topology):
            if is_kept:
                self.passed.add(peer)
        elif topology.epoch >= self._requested.epoch:
            self._without.add(peer)

    def is_acked(self, view: View) -> bool:
        """Whether no quorum of a partition serves requests without the entry, now or later.

        So few members have not confirmed it that they are no majority, which could restore a lost
        topology without it.
        """
        rest = view.members.keys() - self.passed
        return 2 * len(rest) <= len(view.members) and not serves_quorum(view, self.passed)

    def is_lost(self, view: View) -> bool:
        """Whether a majority serves a later topology without the entry.

        It was lost with the topology; or it has ended since then, if no answer came for that long.
        """
        without = view.members.keys() & self._without - self.passed
        return 2 * len(without) > len(view.members)


class DropAcks(RequestAcks):
    """The members that have confirmed a drop; its entry is only removed when its records are.

    Args:
        requested: the topology with the entry.
        drop: the entry.
    """

    def __init__(self, requested: Topology, drop: Drop) -> None:
        super().__init__(requested)
        self._drop = drop

    def is_known_in(self, topology: Topology) -> bool:
        """Whether a topology has the drop, or another that takes its place."""
        return any(drop.fulfils(self._drop) for drop in topology.drops)


class SettingsAcks(RequestAcks):
    """The members that have confirmed settings of an index.

    Other settings are no confirmation, not even with a later number: where an older topology was
    put back, members know numbers of earlier requests that are higher than that of this one. So a
    later request that takes the place of this one makes its outcome unknown.

    Args:
        requested: the topology with the settings.
        index: its name.
        settings: those that were requested, by name; the other settings of the index may change.
    """

    def __init__(self, requested: Topology, index: str, settings: Mapping[str, int]) -> None:
        super().__init__(requested)
        self._index = index
        self._settings = settings

    def is_known_in(self, topology: Topology) -> bool:
        """Whether the index has these settings in a topology."""
        return has_settings(topology, self._index, self._settings)


def serves_quorum(view: View, passed: set[str]) -> bool:
    """Whether in any partition the peers not in ``passed`` may be enough for a read at quorum."""
    return any(view.may_read_without(peers, passed) for peers in {*view.before, *view.writers})
