"""Planted fault: repair skips a replica for ever once its disk was full."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest import mock

from dstash.cluster.repair import exchange, hints
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.transfer import Pulled, pull, push
from dstash.errors import DiskFull
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World

Repairing = Generator[Any, Any, Any]


@plant("give-up-on-full-disks", "I4")
class GivesUpOnFullDisks(World):
    """Transfers nothing after a refusal for lack of room, even when there is room again."""

    def __init__(self, seed: int) -> None:
        conditions = planted_conditions(seed, "no_room", "full_disk")
        super().__init__(seed, conditions=replace(conditions, levels=(1, 0, 0)))
        self._given_up: set[frozenset[str]] = set()

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        yield mock.patch.object(exchange, "push", self._push)
        yield mock.patch.object(hints, "push", self._push)
        yield mock.patch.object(exchange, "pull", self._pull)

    def _push(self, replica: Replica, other: str, *arguments: Any, **named: Any) -> Repairing:
        pair = frozenset((replica.me, other))
        if pair in self._given_up:
            return {}
        try:
            refused = yield from push(replica, other, *arguments, **named)
        except DiskFull:
            self._given_up.add(pair)
            return {}
        if DiskFull.code in refused.values():
            self._given_up.add(pair)
        return refused

    def _pull(self, replica: Replica, source: str, *arguments: Any) -> Repairing:
        pair = frozenset((replica.me, source))
        if pair in self._given_up:
            return Pulled(0, {})
        pulled = yield from pull(replica, source, *arguments)
        if any(isinstance(why, DiskFull) for why in pulled.refused.values()):
            self._given_up.add(pair)
        return pulled
