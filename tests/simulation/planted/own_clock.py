"""Planted fault: a peer trusts its own clock."""

from __future__ import annotations

from dataclasses import replace

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.store.memory import TwinStore
from dstash.version import Stamp
from tests.simulation.events import SECOND
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


class _OwnClock(ClusterClock):
    """Reads no other clock, and ignores the present of a majority."""

    def answered(self, peer: str, correlation: int, moment: int) -> None:
        """Read nothing."""

    @property
    def knows_majority(self) -> bool:
        """Use the own clock as the cluster clock."""
        return True

    def confirmed(self) -> Stamp:
        """Return that no stamp is held."""
        return 0

    def highest_possible(self) -> Stamp:
        """Trust the own clock."""
        return self.latest()


@plant("own-clock", "I1", "I3", "I4", "I6", first=36)
class TrustsItsOwnClock(World):
    """Accepts, promises and starts by its own clock."""

    def __init__(self, seed: int) -> None:
        conditions = replace(planted_conditions(seed, "far_clock"), calm=3 * SECOND)
        super().__init__(seed, conditions=conditions)

    def make_core(self, settings: Settings, store: TwinStore, now: int) -> PeerCore:
        """Return a core whose clock reads no other one."""
        core = super().make_core(settings, store, now)
        core.clock.__class__ = _OwnClock
        return core
