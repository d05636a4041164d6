"""Planted fault: a store votes whose machine stopped before its last commits were synced."""

from __future__ import annotations

from dataclasses import replace

from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.store.memory import TwinStore
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


@plant("unsynced-vote", "I1", "I3", "I6", first=4)
class UnsyncedVote(World):
    """Relies on what other peers remember, who have not heard of the last commits."""

    def __init__(self, seed: int) -> None:
        hard = replace(
            planted_conditions(seed, "unsynced", "isolate"),
            peers=3,
            offsets_ms=(0, 0, 0),
            clients=3,
            calls=250,
            keys=6,
            calm=600 * MS,
            timeout=0.7,
            pause=100 * MS,
        )
        super().__init__(seed, conditions=hard)

    def make_core(self, settings: Settings, store: TwinStore, now: int) -> PeerCore:
        """Return a core whose store seems to have all commits."""
        store.may_lack_writes = False
        return super().make_core(settings, store, now)
