"""Planted fault: a forked client keeps the writer id and the clock of its parent."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.client.session import Identity, Session
from tests.simulation.events import MS
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World


def _identity(session: Session) -> Identity:
    return session._identity


@plant("shared-identity", "I1")
class ForksShareAnIdentity(World):
    """Stamps with the identity from before the fork."""

    def __init__(self, seed: int) -> None:
        conditions = replace(
            planted_conditions(seed, "fork"),
            aligned=20 * MS,
            client_offset_ms=0,
            keys=2,
            pause=20 * MS,
            calls=60,
        )
        super().__init__(seed, conditions=conditions)

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return a session that does not check the process id."""
        return (mock.patch.object(Session, "_current_identity", _identity),)
