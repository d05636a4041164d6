"""Planted fault: a gain is reported as complete before its data has arrived."""

from __future__ import annotations

from dataclasses import replace

from dstash.cluster.membership.interface import StoredTopology
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.transitions import complete
from dstash.peer.background.maintenance import Pace
from dstash.peer.membership_agent import MembershipAgent
from tests.simulation.events import SECOND
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


# I6: a delete reports a key as missing when no replica that it asks has the record.
@plant("gains-on-credit", "I1", "I3", "I4", "I6")
class CallsGainsComplete(World):
    """Reports a topology change as complete when it has hardly begun."""

    def __init__(self, seed: int) -> None:
        # Data moves slowly, and two replicas of many partitions move at the same time.
        conditions = replace(
            planted_conditions(seed, "change"),
            peers=3,
            zones=5,
            offsets_ms=(0, 0, 0),
            spares=2,
            keys=25,
            pace=Pace(compare_ms=20_000, repair_rate=200),
            calm=SECOND,
        )
        super().__init__(seed, conditions=conditions)
        self.events.after(2 * SECOND, self._add_all)

    def _add_all(self) -> None:
        for node in self.nodes:
            if not node.is_running:
                node.start()

    def propose(self, agent: MembershipAgent, stored: StoredTopology) -> Topology | None:
        """Report that this peer has streamed all its gains."""
        topology = super().propose(agent, stored)
        if topology is not None or stored.topology is None or stored.topology.change is None:
            return topology
        number, life = stored.topology.change.number, Life(0, 0, 0)
        return complete(stored.topology, agent._announcement.peer, number, life)
