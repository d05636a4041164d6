"""Planted fault: merges and repairs ignore versions."""

from __future__ import annotations

from collections.abc import Sequence

from dstash.store.interface import Merged, Write
from tests.simulation.disk import SimulatedStore
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


class _LastArrivalWins(SimulatedStore):
    def commit(self, writes: Sequence[Write]) -> list[Merged]:
        for write in writes:
            for storage_key, _ in write.entries:
                self.records.pop(storage_key, None)
        return super().commit(writes)


@plant("ignore-versions", "I1", "I3", "I6")
class IgnoresVersions(World):
    """Merges and repairs without comparing versions: the last record wins."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, conditions=planted_conditions(seed, "cut_pair", "pause", "storm"))

    def make_store(self, store_id: str) -> SimulatedStore:
        """Return a disk that accepts every record."""
        return _LastArrivalWins(store_id, self.rng)
