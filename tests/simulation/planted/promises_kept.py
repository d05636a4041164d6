"""Planted fault: a promise is kept after a failed agreement."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.cluster.repair import antientropy
from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.peer.background.maintenance import Pace
from tests.simulation.events import MS, SECOND
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


@plant("promises-kept", "I4", first=31)
class KeepsPromises(World):
    """Refuses older records until the promise ends, whether or not replicas agreed."""

    def __init__(self, seed: int) -> None:
        conditions = replace(
            planted_conditions(seed, "cut_pair", "isolate", "pause", "storm"),
            pace=Pace(2_000, 2_000, 500),
            keys=25,
            mix=(("delete", 30), ("batch_delete", 10)),
            pause=100 * MS,
            calm=SECOND,
        )
        super().__init__(seed, conditions=conditions)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return promises that are not revoked, and comparison without a retry.

        Hints are not kept: they would deliver most missed writes before the comparison.
        """
        yield mock.patch.object(Hints, "add")
        yield mock.patch.object(LocalPartitions, "release", return_value=[])
        yield mock.patch.object(antientropy, "_RETRY_PAUSES_MS", ())
