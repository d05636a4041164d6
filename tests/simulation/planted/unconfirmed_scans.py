"""Planted fault: a scan at any level delivers the records of one replica."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.client.operations.page_reads import PageOperation
from dstash.cluster.repair.hints import Hints
from dstash.peer.background.maintenance import Pace
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


def _no_votes(operation: PageOperation, partition: int) -> int:
    return 0


@plant("unconfirmed-scans", "I1", "I3")
class ScansAreNotConfirmed(World):
    """Delivers pages without comparing replicas."""

    def __init__(self, seed: int) -> None:
        conditions = replace(
            planted_conditions(seed, "isolate", "cut_pair", "pause"),
            pause=30 * MS,
            calm=300 * MS,
            pace=Pace(20_000),
            mix=(("lookup", 0), ("batch_lookup", 0), ("scan", 60), ("keys", 30), ("count", 30)),
        )
        super().__init__(seed, conditions=conditions)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return a page that no other replica confirms, and hints that are not kept.

        Without hints and read repair, missed writes stay missing until replicas are compared.
        """
        yield mock.patch.object(PageOperation, "votes_needed", _no_votes)
        yield mock.patch.object(Hints, "add")
