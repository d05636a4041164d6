"""Planted fault: a request that is repeated is applied again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from unittest import mock

from dstash.peer.registers import operations
from tests.simulation.planted.registry import plant, register_conditions
from tests.simulation.world import World


@plant("requests-applied-twice", "I7", "I9")
class AppliesRequestsTwice(World):
    """Does not look for the entry of a request (D6), while answers are lost."""

    def __init__(self, seed: int) -> None:
        conditions = register_conditions(seed, "isolate", "cut_pair", "kill", "isolate_one_way")
        super().__init__(seed, conditions=conditions)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the broken rule."""
        return (mock.patch.object(operations, "_known", return_value=None),)
