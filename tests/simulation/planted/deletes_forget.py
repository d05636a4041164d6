"""Planted fault: a repeated delete is answered by the tombstone of its first attempt."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from unittest import mock

from dstash.client.operations.writes import WriteOperation
from dstash.peer.commits.commit import Commit
from dstash.peer.commits.recent_deletes import RecentDeletes
from dstash.peer.core import AnyCommit
from dstash.wire.messages import Delete
from tests.simulation.events import MS
from tests.simulation.node import Node
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


def _forget(*_: object) -> None:
    return None


@plant("deletes-forget", "I6")
class DeletesForget(World):
    """Neither peers nor clients remember the results of earlier attempts of a delete."""

    _is_muted = False

    def __init__(self, seed: int) -> None:
        super().__init__(seed, conditions=planted_conditions(seed, "break", "slow_network"))

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        yield mock.patch.object(RecentDeletes, "answer", _forget)
        yield mock.patch.object(WriteOperation, "keep_existed", _forget)

    def run_commit(self, node: Node, commit: AnyCommit) -> None:
        """Lose the acks of some deletes, with the connections."""
        waiting = commit.waiting if isinstance(commit, Commit) else []
        is_delete = any(isinstance(write.message, Delete) for write in waiting)
        if is_delete and not self.is_healing and not self._is_muted and self.rng.random() < 0.3:
            self._is_muted = True
            for source, target in self._answers():
                self.network.cut(source, target)
            self.events.after(10 * MS, self._break)
        super().run_commit(node, commit)

    def _break(self) -> None:
        for client in self.clients:
            for connection in self.network._of(client.name):
                connection.break_(0)
        for source, target in self._answers():
            self.network.restore(source, target)
        self._is_muted = False

    def _answers(self) -> list[tuple[str, str]]:
        return [(node.name, client.name) for node in self.nodes for client in self.clients]
