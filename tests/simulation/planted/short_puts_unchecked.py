"""Planted fault: a put of one key replaces a record that is stamped later."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.peer.short.writes import ShortWrites
from dstash.store.interface import Write
from dstash.version import Version, newest_stamp
from tests.simulation.disk import SimulatedStore
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


def _begins(writes: ShortWrites, *_: object) -> bool:
    return True


def _put(store: SimulatedStore, storage_key: bytes, record: bytes, version: Version) -> bool:
    store.records.pop(storage_key, None)
    store.commit([Write([(storage_key, record)], 0, newest_stamp(version))])
    return True


@plant("short-puts-unchecked", "I1", "I2", "I4", "I6")
class ShortPutsUnchecked(World):
    """Takes every put that nothing else waits with for the last write of its peer."""

    def __init__(self, seed: int) -> None:
        conditions = planted_conditions(seed, "cut_pair", "lost_requests")
        super().__init__(seed, conditions=replace(conditions, duplication=0.3, jitter=20_000))

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        yield mock.patch.object(ShortWrites, "_may_begin", _begins)
        yield mock.patch.object(SimulatedStore, "put_newest", _put)
