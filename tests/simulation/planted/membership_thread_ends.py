"""Planted fault: a defect in one turn ends the membership thread of a peer."""

from __future__ import annotations

from tests.simulation.node import Node
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


@plant("membership-thread-ends", "I4", "I6")
class MembershipThreadEnds(World):
    """Looks at the membership no more after one turn has failed."""

    def __init__(self, seed: int) -> None:
        conditions = planted_conditions(seed, "failing_turns", "change", "kill")
        super().__init__(seed, conditions=conditions)

    def turn_failed(self, node: Node) -> None:
        """Let the thread end without a word."""
