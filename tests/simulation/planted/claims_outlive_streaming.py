"""Planted fault: what clients saw of an old copy is held against it after it was filled."""

from __future__ import annotations

from dataclasses import replace

from dstash.cluster.replication.lineage import Lineage
from dstash.cluster.topology.life import Life
from dstash.peer.core import PeerCore, Settings
from dstash.store.memory import TwinStore
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


@plant("claims-outlive-streaming", "I6")
class ClaimsOutliveFilling(World):
    """Does not go by the life that began when a store was filled."""

    def __init__(self, seed: int) -> None:
        hard = replace(
            planted_conditions(seed, "old_copy", "kill"),
            peers=3,
            offsets_ms=(0, 0, 0),
            clients=3,
            calls=150,
            keys=8,
            calm=300 * MS,
        )
        super().__init__(seed, conditions=hard)

    def make_core(self, settings: Settings, store: TwinStore, now: int) -> PeerCore:
        """Return a core whose claims are judged by all lives that were ever reported."""
        core = super().make_core(settings, store, now)
        claims = core.maintenance.freshness._claims
        claims._lineage = _Unforgiving(claims._lineage)  # type: ignore[assignment]
        return core


class _Unforgiving:
    """A lineage that takes what was seen before the store was filled for a contradiction."""

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage

    @property
    def current(self) -> Life:
        return self._lineage.current

    def is_behind(self, seen: Life) -> bool:
        if seen.number < self._lineage._base:
            return True
        return self._lineage.is_behind(seen)
