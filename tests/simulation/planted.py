"""Worlds with a fault planted into the peers, to show that the checker would find it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from dstash.cluster.changing import complete
from dstash.cluster.membership import Stored
from dstash.cluster.topology import Topology
from dstash.peer.commits import Commit
from dstash.peer.core import PeerCore, Settings
from dstash.peer.keeper import Keeper
from dstash.store.digest import version_of
from dstash.store.interface import Merged, Write
from dstash.store.record import VERSION_END
from dstash.store.twin import TwinStore
from dstash.types import RecordFlag
from dstash.version import newest_stamp, stamp_milliseconds
from tests.simulation.conditions import Conditions, draw
from tests.simulation.disk import SimulatedStore
from tests.simulation.events import MS, SECOND
from tests.simulation.node import Node
from tests.simulation.world import World

_CALLS: Final = 150


def _conditions(seed: int, *faults: str) -> Conditions:
    """Draw conditions that give a planted fault a chance: clocks are right, keys are few."""
    drawn = draw(Random(seed), _CALLS)
    return replace(
        drawn,
        faults=faults,
        replicas=3,
        keys=4,
        levels=(0, 1, 0),
        offsets_ms=(0,) * drawn.peers,
        calm=SECOND,
        timeout=2.0,
        pause=100 * MS,
    )


class AckBeforeSync(World):
    """Acks at once and syncs now and then: what was not synced is lost when the power goes."""

    def __init__(self, seed: int) -> None:
        self._synced: dict[str, dict[bytes, bytes]] = {}
        super().__init__(seed, conditions=_conditions(seed, "kill_all", "power", "kill"))

    def run_commit(self, node: Node, commit: Commit) -> None:
        """Bring a commit to the page cache, and to disk only sometimes."""
        super().run_commit(node, commit)
        if self.rng.random() < 0.1:
            self._synced[node.store.store_id] = dict(node.store.records)

    def crashed(self, node: Node) -> None:
        """Lose what was not synced."""
        node.store.records = dict(self._synced.get(node.store.store_id, {}))
        node.store.forget_order()


class _NewestArrivalWins(SimulatedStore):
    def commit(self, writes: Sequence[Write]) -> list[Merged]:
        for write in writes:
            for storage_key, _ in write.entries:
                self.records.pop(storage_key, None)
        return super().commit(writes)


class IgnoresVersions(World):
    """Merges and repairs without a look at versions: what comes last wins."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, conditions=_conditions(seed, "cut_pair", "pause", "storm"))

    def make_store(self, store_id: str) -> SimulatedStore:
        """Return a disk that takes whatever comes."""
        return _NewestArrivalWins(store_id, self.rng)


class DropsTombstonesOnATimer(World):
    """Forgets deletes after two seconds, whoever may not have heard of them."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, conditions=_conditions(seed, "isolate", "kill", "pause"))
        self.events.after(SECOND, self._sweep)

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


class _Blank(dict[str, int]):
    """Remembers nothing of what it saw."""

    def __setitem__(self, peer: str, seen: int) -> None:
        """Forget it."""


class AmnesiacsVote(World):
    """Takes a store that is new as if it held what the old one held."""

    def __init__(self, seed: int) -> None:
        # Amnesia does harm only until the others have filled the store again: things must go
        # wrong quickly, one after the other.
        hard = replace(
            _conditions(seed, "wipe", "kill", "cut_pair"),
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
        """Return a core that does not remember how new the stores of others were."""
        core = super().make_core(settings, store, now)
        core.holdings.seen = _Blank()
        return core

    def propose(self, keeper: Keeper, stored: Stored) -> Topology | None:
        """Call everybody synced."""
        topology = super().propose(keeper, stored)
        if topology is None:
            return None
        members = tuple(replace(member, synced=True) for member in topology.members)
        return replace(topology, members=members)


class CallsGainsComplete(World):
    """Calls a change of placement complete when it has hardly begun."""

    def __init__(self, seed: int) -> None:
        # What is left behind is in a few partitions of many: keys in more of them find it sooner.
        super().__init__(seed, conditions=replace(_conditions(seed, "change", "kill"), keys=16))

    def propose(self, keeper: Keeper, stored: Stored) -> Topology | None:
        """Say of this peer that it has all it gains."""
        topology = super().propose(keeper, stored)
        if topology is not None or stored.topology is None or stored.topology.change is None:
            return topology
        return complete(stored.topology, keeper._announcement.peer, stored.topology.change.number)


PLANTED: Final[dict[str, Callable[[int], World]]] = {
    "ack-before-sync": AckBeforeSync,
    "ignore-versions": IgnoresVersions,
    "tombstones-on-a-timer": DropsTombstonesOnATimer,
    "amnesiacs-vote": AmnesiacsVote,
    "gains-on-credit": CallsGainsComplete,
}
