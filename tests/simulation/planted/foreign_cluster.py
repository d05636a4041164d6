"""Planted fault: a cluster that an empty peer forms counts like the lost cluster."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.cluster.topology.joining import supersedes
from dstash.cluster.topology.topology import Topology
from dstash.peer.topology_steps import TopologySteps
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


def _only_its_own(last: Topology | None, stored: Topology, cluster: str) -> bool:
    is_foreign = last is not None and last.cluster_id != stored.cluster_id
    return not is_foreign and supersedes(last, stored, cluster)


@plant("foreign-cluster", "I1", "I4", "I6", first=15)
class ForeignCluster(World):
    """Keeps the topology of another cluster although that cluster has not formed."""

    def __init__(self, seed: int) -> None:
        conditions = planted_conditions(seed, "empty_first", "kill")
        super().__init__(seed, conditions=replace(conditions, spares=2))

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        yield mock.patch("dstash.peer.topology_steps.supersedes", _only_its_own)
        yield mock.patch.object(TopologySteps, "_is_abandoned", return_value=False)
