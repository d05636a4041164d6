"""Planted fault: a voter forgets its promises when it accepts."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.store.register.voter import Held
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, register_conditions
from tests.simulation.world import World


@plant("accepts-below-promise", "I7", "I9", first=43)
class AcceptsBelowPromise(World):
    """Accepts a round below one that it has promised (V2), while homes change."""

    def __init__(self, seed: int) -> None:
        drawn = register_conditions(seed, "isolate", "kill", "lost_requests")
        # Two homes must change one register within milliseconds.
        super().__init__(
            seed, conditions=replace(drawn, calls=400, keys=2, clients=8, pause=15 * MS)
        )

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the broken rule."""
        return (mock.patch.object(Held, "forbids", return_value=False),)
