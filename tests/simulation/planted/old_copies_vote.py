"""Planted fault: a store that is an old copy of itself votes."""

from __future__ import annotations

from dataclasses import replace

from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.store.memory import TwinStore
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


@plant("old-copies-vote", "I1", "I3", "I6")
class OldCopiesVote(World):
    """Treats a store as current, regardless of what other peers remember."""

    def __init__(self, seed: int) -> None:
        hard = replace(
            planted_conditions(seed, "old_copy", "isolate", "kill"),
            peers=3,
            offsets_ms=(0, 0, 0),
            clients=3,
            calls=250,
            keys=8,
            calm=300 * MS,
            timeout=0.7,
            pause=100 * MS,
        )
        super().__init__(seed, conditions=hard)

    def make_core(self, settings: Settings, store: TwinStore, now: int) -> PeerCore:
        """Return a core that ignores what other peers remember."""
        core = super().make_core(settings, store, now)
        freshness = core.maintenance.freshness
        freshness._lacking = lambda view: []  # type: ignore[method-assign]
        freshness._judge = lambda is_old, by: False  # type: ignore[method-assign]
        return core
