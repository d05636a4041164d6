"""Planted fault: a write that may be stored is reported as not stored."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from unittest import mock

from dstash.errors import DStashError
from dstash.types import Outcome
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


def _why_itself(outcome: Outcome, why: DStashError, text: str = "") -> DStashError:
    return why


@plant("unavailable-for-unknown", "I6", "I2")
class UnavailableForUnknown(World):
    """Raises the reason itself, regardless of the outcome."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, conditions=planted_conditions(seed, "kill_all", "stop", "no_room"))

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        yield mock.patch("dstash.client.operations.writes.error_for", _why_itself)
