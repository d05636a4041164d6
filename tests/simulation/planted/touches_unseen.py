"""Planted fault: the digests that a horizon depends on leave out what was touched after it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from random import Random
from unittest import mock

from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication.digests.digests import Digests
from dstash.version import newest_stamp
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.profiles.meetings import late_touch
from tests.simulation.world import World


@plant("touches-unseen", "I1", "I3", "I4", first=3)
class TouchesAreUnseen(World):
    """Judges a record by its last touch when replicas agree on a horizon.

    A replica that missed a delete, and took a later touch of the deleted value, then has the same
    digest as those that hold the tombstone; they drop it, and the value is back.
    """

    def __init__(self, seed: int) -> None:
        conditions = late_touch(planted_conditions(seed), Random(seed))
        super().__init__(seed, conditions=conditions)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault, and what gives it a chance.

        Hints would soon bring the delete. And partitions are known to have tombstones before they
        are compared, because a comparison would bring it too.
        """
        yield mock.patch("dstash.store.digest.write_stamp", newest_stamp)
        yield mock.patch.object(Hints, "add")
        yield mock.patch.object(Digests, "gains_from", return_value=True)
