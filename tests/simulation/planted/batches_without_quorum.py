"""Planted fault: a home takes the vote of one voter for that of a quorum, in batches only."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

from dstash.peer.registers.batch_attempt import BatchAttempt
from tests.simulation.planted.registry import plant, register_conditions
from tests.simulation.world import World


def _any(attempt: BatchAttempt) -> bool:
    return bool(attempt.votes)


@plant("batches-without-quorum", "I7", "I8", "I9")
class BatchesWithoutQuorum(World):
    """Decides the registers of a batch by the first answer (P11), while homes change."""

    def __init__(self, seed: int) -> None:
        conditions = register_conditions(seed, "isolate", "cut_pair", "kill", "isolate_one_way")
        super().__init__(seed, conditions=replace(conditions, mix=(("register_batch", 400),)))

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the broken rule."""
        return (mock.patch.object(BatchAttempt, "has_quorum", property(_any)),)
