"""Planted fault: a scan at any level delivers what one replica holds."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.client.page_reads import PageOperation
from dstash.peer.core import PeerCore, Settings
from dstash.peer.healer import Pace
from dstash.store.twin import TwinStore
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


def _no_votes(operation: PageOperation, partition: int) -> int:
    return 0


@plant("unconfirmed-scans", "I1", "I3")
class ScansAreNotConfirmed(World):
    """Lets pages be delivered without a look at other replicas."""

    def __init__(self, seed: int) -> None:
        conditions = replace(
            planted_conditions(seed, "isolate", "cut_pair", "pause"),
            pause=30 * MS,
            pace=Pace(20_000),
            mix=(("scan", 20), ("keys", 10), ("count", 10)),
        )
        super().__init__(seed, conditions=conditions)

    def make_core(self, settings: Settings, store: TwinStore, now: int) -> PeerCore:
        """Return a core that keeps no hints: what a replica misses is missing for a while."""
        return super().make_core(settings._replace(hint_limit=0), store, now)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return a page that no other replica has to confirm."""
        return (mock.patch.object(PageOperation, "votes_needed", _no_votes),)
