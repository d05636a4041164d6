"""Planted fault: a drop is acked although the topology has lost it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.cluster.topology.indexes.acks import DropAcks
from dstash.cluster.topology.topology import Topology
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


def _by_epoch(acks: DropAcks, peer: str, topology: Topology, *, is_kept: bool) -> None:
    if topology.epoch >= acks._requested.epoch:
        acks.passed.add(peer)


@plant("drops-acked-by-epoch", "I3")
class DropsAckedByEpoch(World):
    """A member with a later topology counts as a member that knows the drop."""

    def __init__(self, seed: int) -> None:
        conditions = planted_conditions(seed, "drop", "lost_topology")
        super().__init__(seed, conditions=replace(conditions, calm=200 * MS))

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return acks that do not look for the entry."""
        return (mock.patch.object(DropAcks, "take", _by_epoch),)
