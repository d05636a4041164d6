"""Planted fault: a gain is reported as complete before its data has arrived."""

from __future__ import annotations

from dataclasses import replace

from dstash.cluster.membership.interface import StoredTopology
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.transitions import complete
from dstash.peer.membership_agent import MembershipAgent
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


# I6: a delete reports a key as missing when no replica that it asks has the record.
@plant("gains-on-credit", "I1", "I3", "I4", "I6")
class CallsGainsComplete(World):
    """Reports a topology change as complete when it has hardly begun."""

    def __init__(self, seed: int) -> None:
        # The missing data is in a few of many partitions: keys in more partitions find it sooner.
        conditions = replace(planted_conditions(seed, "change", "kill"), keys=16)
        super().__init__(seed, conditions=conditions)

    def propose(self, agent: MembershipAgent, stored: StoredTopology) -> Topology | None:
        """Report that this peer has streamed all its gains."""
        topology = super().propose(agent, stored)
        if topology is not None or stored.topology is None or stored.topology.change is None:
            return topology
        return complete(stored.topology, agent._announcement.peer, stored.topology.change.number)
