"""Planted faults: two histories of the topology share an epoch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final
from unittest import mock

from dstash.cluster.topology.topology import Topology
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World

_FOUND: Final = ("I1", "I3", "I4", "I6")


class _Forked(World):
    """A cluster whose topology is lost again and again while one member alone knows the newest."""

    def __init__(self, seed: int) -> None:
        drawn = planted_conditions(seed, "forked_history")
        conditions = replace(drawn, spares=1, calls=60, pause=200 * MS)
        super().__init__(seed, conditions=conditions)


@plant("restored-without-jump", *_FOUND, first=13)
class RestoredWithoutJump(_Forked):
    """Restores a lost topology under the next epoch."""

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        yield mock.patch("dstash.cluster.topology.joining.RESTORED_JUMP", 1)
        yield mock.patch("dstash.peer.topology_steps.MAX_FURTHER", 0)


def _never(last: Topology, stored: Topology) -> bool:
    return False


@plant("epochs-shared", *_FOUND, first=88)
class EpochsShared(_Forked):
    """Takes a topology for the known one because its epoch is the same."""

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        yield mock.patch("dstash.peer.topology_steps.shares_epoch", _never)
