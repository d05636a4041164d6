"""Planted fault: a defect in one round ends the membership thread of a peer."""

from __future__ import annotations

from tests.simulation.node import Node
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


@plant("membership-thread-ends", "I4", "I6", first=7)
class MembershipThreadEnds(World):
    """Stops reading the membership after one failed round."""

    def __init__(self, seed: int) -> None:
        conditions = planted_conditions(seed, "failing_turns", "change", "kill")
        super().__init__(seed, conditions=conditions)

    def iteration_failed(self, node: Node) -> None:
        """End the thread without a report."""
