"""Planted fault: a peer computes the expiry that an index requires from its own clock."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.errors import DStashError
from dstash.peer.admission.writes import WaitingWrite
from dstash.peer.commits.commit import Commit
from dstash.peer.commits.rules import Prepared
from dstash.version import WRITER_BYTES, pack, stamp_at
from dstash.wire.messages import Put
from tests.simulation.planted.registry import plant, planted_conditions
from tests.simulation.world import World

_prepare = Commit._prepare


def _prepare_by_own_clock(commit: Commit, waiting: WaitingWrite) -> Prepared | DStashError:
    message, settings = waiting.message, waiting.settings
    if settings is not None and isinstance(message, Put):
        version = pack(stamp_at(commit.rules.now), bytes(WRITER_BYTES))
        message = replace(message, expiry=settings.expiry(version, message.expiry))
        waiting = replace(waiting, message=message, settings=None)
    return _prepare(commit, waiting)


@plant("expiry-by-own-clock", "I1", "I3", "I4")
class ExpiryByOwnClock(World):
    """Replicas store other expiries under one version."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, conditions=planted_conditions(seed, "settings", "kill", "pause"))

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the fault."""
        return (mock.patch.object(Commit, "_prepare", _prepare_by_own_clock),)
