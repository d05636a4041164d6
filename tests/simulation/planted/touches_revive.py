"""Planted fault: a touch of a value that was deleted and collected brings it back."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from random import Random
from unittest import mock

from dstash.store.record import version_of
from dstash.version import Stamp, newest_stamp
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.profiles.meetings import late_touch
from tests.simulation.world import World


def _newest(record: bytes) -> Stamp:
    return newest_stamp(version_of(record))


@plant("touches-revive", "I1", "I3", "I4")
class TouchesRevive(World):
    """Compares the last touch of a record with the horizon, in place of the write."""

    def __init__(self, seed: int) -> None:
        conditions = late_touch(planted_conditions(seed), Random(seed))
        super().__init__(seed, conditions=conditions)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        yield mock.patch("dstash.store.merge.horizon_stamp", _newest)
