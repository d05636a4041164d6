"""Planted fault: the refusal of an item by one replica counts as its ack."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.client.refusals import Group, Refusals
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


def _one_group(refusals: Refusals, size: int, settled: Collection[int]) -> list[Group]:
    return [(frozenset(), [place for place in range(size) if place not in settled])]


@plant("refusals-as-acks", "I1", "I2", "I3")
class RefusalsAsAcks(World):
    """Counts every answer to a chunk as an ack, including refused items."""

    def __init__(self, seed: int) -> None:
        conditions = planted_conditions(seed, "no_room", "damage", "slow_disk")
        super().__init__(seed, conditions=replace(conditions, calm=conditions.calm // 2))

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        yield mock.patch.object(Refusals, "groups", _one_group)
