"""Planted fault: floors are lowered without floors of registers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.peer.background.maintenance import Pace
from tests.simulation.events import SECOND
from tests.simulation.planted.registry import plant, register_conditions
from tests.simulation.world import World


@plant("floors-of-registers-lost", "I7", "I8", "I9")
class LosesFloorsOfRegisters(World):
    """Lets rounds of registers go below horizons that were lowered (T7)."""

    def __init__(self, seed: int) -> None:
        conditions = register_conditions(seed, "far_clock", "lower_floors")
        # The run must last longer than the clocks are wrong.
        conditions = replace(conditions, pace=Pace(1000, 1000, 100), pause=SECOND, calm=2 * SECOND)
        super().__init__(seed, conditions=conditions)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the broken rule."""
        return (mock.patch.object(LocalPartitions, "raise_register_floors", return_value=[]),)
