"""Planted fault: tombstones are dropped by a timer."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.cluster.repair.hints import Hints
from dstash.store.digest import version_of
from dstash.store.record import VERSION_END
from dstash.types import RecordFlag
from dstash.version import newest_stamp, stamp_milliseconds
from tests.simulation.events import MS, SECOND
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


@plant("tombstones-on-a-timer", "I3")
class DropsTombstonesOnATimer(World):
    """Drops tombstones after two seconds, whether or not every replica has them."""

    def __init__(self, seed: int) -> None:
        conditions = planted_conditions(seed, "isolate", "kill", "pause")
        super().__init__(seed, conditions=replace(conditions, mix=(("delete", 30),)))
        self.events.after(SECOND, self._sweep)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return hints that are not kept: a replica that missed a delete stays without it."""
        return (mock.patch.object(Hints, "add"),)

    def _sweep(self) -> None:
        for node in self.nodes:
            records = node.store.records
            horizon = node.clock() - 2_000
            for storage_key in node.store.ordered().copy():
                record = records[storage_key]
                stamp = stamp_milliseconds(newest_stamp(version_of(record)))
                if record[VERSION_END] & RecordFlag.TOMBSTONE and stamp < horizon:
                    del records[storage_key]
            node.store.forget_order()
        self.events.after(200 * MS, self._sweep)
