"""Planted fault: claims about an old copy count after the store was streamed."""

from __future__ import annotations

from dataclasses import replace

from dstash.cluster.replication.lineage import Lineage
from dstash.cluster.topology.life import Life
from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.store.memory import TwinStore
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


@plant("claims-outlive-streaming", "I6")
class ClaimsOutliveFilling(World):
    """Ignores that a new life began when a store was streamed."""

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
        """Return a core that compares claims with all lives that were ever reported."""
        core = super().make_core(settings, store, now)
        claims = core.maintenance.freshness._claims
        claims._lineage = _Unforgiving(claims._lineage)  # type: ignore[assignment]
        return core


class _Unforgiving:
    """A lineage that treats sightings from before streaming as contradictions."""

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage

    @property
    def current(self) -> Life:
        return self._lineage.current

    def is_behind(self, seen: Life) -> bool:
        if seen.number < self._lineage._base:
            return True
        return self._lineage.is_behind(seen)
