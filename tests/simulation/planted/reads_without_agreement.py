"""Planted fault: a home takes for agreed what one voter has shown."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from unittest import mock

from dstash.peer.registers.attempt import Attempt, Shown
from dstash.version import Version
from tests.simulation.planted.registry import plant, register_conditions
from tests.simulation.world import World


def _first(_: Attempt, shown: Shown, __: Iterable[str] = ()) -> Version | None:
    return shown.highest if shown.held else None


@plant("reads-without-agreement", "I7", "I9", first=23)
class ReadsWithoutAgreement(World):
    """Does not wait for a quorum that shows one version (P3), while homes change."""

    def __init__(self, seed: int) -> None:
        conditions = register_conditions(seed, "isolate", "cut_pair", "kill", "isolate_one_way")
        super().__init__(seed, conditions=conditions)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the broken rule."""
        return (mock.patch.object(Attempt, "agreed", _first),)
