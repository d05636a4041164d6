"""Planted fault: a store that lost its data votes."""

from __future__ import annotations

from dataclasses import replace

from dstash.cluster.membership.interface import StoredTopology
from dstash.cluster.replication.lineage import StoreMemory
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Topology
from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.peer.membership_agent import MembershipAgent
from dstash.store.memory import TwinStore
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


class _Blank(StoreMemory):
    """A memory that keeps nothing."""

    def note(self, store_id: str, seen: Life) -> None:
        """Drop it."""


@plant("amnesiacs-vote", "I1", "I3", first=14)
class AmnesiacsVote(World):
    """Treats a new store as if it had the data of the old store."""

    def __init__(self, seed: int) -> None:
        # Lost data has an effect only until the store is streamed again: faults must follow
        # quickly.
        hard = replace(
            planted_conditions(seed, "wipe", "kill", "cut_pair"),
            peers=3,
            offsets_ms=(0, 0, 0),
            clients=3,
            calls=150,
            keys=8,
            calm=300 * MS,
            timeout=0.7,
            pause=30 * MS,
        )
        super().__init__(seed, conditions=hard)

    def make_core(self, settings: Settings, store: TwinStore, now: int) -> PeerCore:
        """Return a core that does not remember how new other stores were."""
        core = super().make_core(settings, store, now)
        core.local_partitions.memory = _Blank(store)
        return core

    def propose(self, agent: MembershipAgent, stored: StoredTopology) -> Topology | None:
        """Call every member synced."""
        topology = super().propose(agent, stored)
        if topology is None:
            return None
        members = tuple(replace(member, synced=True) for member in topology.members)
        return replace(topology, members=members)
