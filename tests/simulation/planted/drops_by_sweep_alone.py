"""Planted fault: a dropped record is found until it is removed from the disk."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from unittest import mock

from dstash.cluster.repair.dropped_records import Removing, remove_dropped
from dstash.cluster.replication.drops import Drops, Entries
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Pause
from dstash.peer.background import maintenance
from dstash.store.interface import Snapshot
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


def _all(drops: Drops, entries: Entries) -> Entries:
    return entries


def _unchanged(drops: Drops, snapshot: Snapshot) -> Snapshot:
    return snapshot


def _slowly(replica: Replica) -> Removing:
    yield Pause(1000)  # as on a peer with many records
    yield from remove_dropped(replica)


@plant("drops-by-sweep-alone", "I3")
class DropsBySweepAlone(World):
    """Reads do not judge what they find by the drops: it counts until it is removed."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, conditions=planted_conditions(seed, "drop", "kill", "pause"))

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return reads that see all that is on disk."""
        return (
            mock.patch.object(Drops, "present", _all),
            mock.patch.object(Drops, "seen_through", _unchanged),
            mock.patch.object(maintenance, "remove_dropped", _slowly),
        )
