"""Conclusions about a key from the writes in its history."""

from __future__ import annotations

from collections.abc import Iterable

from dstash.types import NEVER, Level, Outcome
from tests.simulation.checks.registry import Terms
from tests.simulation.clock import true_ms
from tests.simulation.history import Write


def overlap(terms: Terms, read: Level, write: Level) -> bool:
    """Whether any two sets of replicas that satisfy these levels have a replica in common."""
    if write is Level.ONE and not terms.keeps_ones:
        return False
    return read.needed(terms.replicas) + write.needed(terms.replicas) > terms.replicas


def may_count(terms: Terms, write: Write) -> bool:
    """Whether a write may have reached a disk."""
    was_refused = write.outcome is Outcome.FAILED and terms.delivers_once
    return bool(write.versions) and not was_refused


def may_live(terms: Terms, write: Write, moment: int) -> bool:
    """Whether the written value may still be live for some peer."""
    return write.expiry == NEVER or write.expiry > true_ms(moment) - terms.slack_ms


def may_be_dead(terms: Terms, write: Write, moment: int) -> bool:
    """Whether the written value may have expired for some peer."""
    first = write.first_expiry or write.expiry
    return first != NEVER and first <= true_ms(moment) + terms.slack_ms


def surely_there(
    terms: Terms, level: Level, writes: Iterable[Write], begin: int, end: int, without: Write
) -> Write | None:
    """Return a write that proves that the key existed during the whole call, or None.

    Args:
        terms: of the run.
        level: the level of the call that should have found the key.
        writes: all writes of the key.
        begin: when that call began.
        end: when it returned.
        without: that call itself.
    """
    known = [
        write
        for write in writes
        if write is not without and write.invoked < end and may_count(terms, write)
    ]
    removing = [
        max(write.versions) for write in known if write.removes or may_be_dead(terms, write, end)
    ]
    last_removed = max(removing, default=b"")
    for write in known:
        is_acked = write.acked is not None and write.returned < begin
        if is_acked and overlap(terms, level, write.level) and write.acked > last_removed:
            return write
    return None
