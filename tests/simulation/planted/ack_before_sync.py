"""Planted fault: a write is acked before its sync."""

from __future__ import annotations

from dstash.peer.core import AnyCommit
from tests.simulation.node import Node
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


@plant("ack-before-sync", "I1", "I3", "I6")
class AckBeforeSync(World):
    """Acks at once and syncs occasionally: a power failure loses the writes in between."""

    def __init__(self, seed: int) -> None:
        self._synced: dict[str, dict[bytes, bytes]] = {}
        super().__init__(seed, conditions=planted_conditions(seed, "kill_all", "power", "kill"))

    def run_commit(self, node: Node, commit: AnyCommit) -> None:
        """Write a commit to the page cache, and only sometimes to disk."""
        super().run_commit(node, commit)
        if self.rng.random() < 0.1:
            self._synced[node.store.store_id] = dict(node.store.records)

    def crashed(self, node: Node) -> None:
        """Lose writes that were not synced."""
        node.store.records = dict(self._synced.get(node.store.store_id, {}))
        node.store.forget_order()
