"""Conclusions about a key from the writes in its history."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from statistics import median_low
from typing import Final

from dstash.limits import MAX_CLOCK_SKEW_MS
from dstash.types import NEVER, Level, Outcome
from dstash.version import newest_stamp, stamp_milliseconds
from tests.simulation.checks.registry import Terms
from tests.simulation.clock import true_ms
from tests.simulation.events import SECOND
from tests.simulation.history import Write, latest_of

#: The clocks of other members are read more often than this (microseconds).
_CLOCKS_READ: Final = 4 * SECOND


def overlap(terms: Terms, read: Level, write: Write, until: int) -> bool:
    """Whether replicas that satisfy the level of a read have an acked write.

    Args:
        terms: of the run.
        read: the level of the read.
        write: an acked write.
        until: when the read returned.
    """
    if write.level is Level.ONE and not keeps_one(terms, write, until):
        return False
    if write.kind == "drop":  # acked when no quorum of a partition serves reads without it
        return read.needed(terms.replicas) >= Level.QUORUM.needed(terms.replicas)
    return read.needed(terms.replicas) + write.level.needed(terms.replicas) > terms.replicas


def keeps_one(terms: Terms, write: Write, until: int) -> bool:
    """Whether a write that a single replica acked must survive until a moment."""
    return terms.keeps_ones and not _was_from_the_future(terms, write, until)


def _was_from_the_future(terms: Terms, write: Write, until: int) -> bool:
    """Whether a write was ahead of the cluster clock, at its ack or after clocks were set back.

    A peer that could not read the clocks of a majority took its own for that of the cluster, and
    one that read a bare majority may have taken a wrong one. It reads them from time to time, so
    it may have used an earlier median.
    """
    if not terms.clocks or write.acked is None:
        return False
    begin, limit = write.returned, stamp_milliseconds(newest_stamp(write.acked)) - MAX_CLOCK_SKEW_MS
    for moment in _steps(terms, max(0, begin - _CLOCKS_READ), begin):
        if limit > true_ms(begin) + cluster_ms(terms, moment) - true_ms(moment):
            return True
    if any(limit > cluster_ms(terms, moment) for moment in _steps(terms, begin, until)):
        return True
    for span in terms.presents:
        start = max(span.begin, write.invoked)
        if start <= min(span.end, until) and limit > true_ms(start) + span.ahead_ms:
            return True
    return False


def _steps(terms: Terms, begin: int, end: int) -> list[int]:
    """Return the beginning of a span, and when a clock was set in it (microseconds)."""
    steps = [clock.steps_between(begin, end) for clock in terms.clocks]
    return [begin, *chain.from_iterable(steps)]


def cluster_ms(terms: Terms, moment: int) -> int:
    """Return the median of the clocks of the members, in milliseconds since 1970."""
    return true_ms(moment) + median_low(clock.offset_at(moment) for clock in terms.clocks)


def may_count(terms: Terms, write: Write) -> bool:
    """Whether a write may have reached a disk."""
    was_refused = write.outcome is Outcome.FAILED and terms.delivers_once
    return bool(write.versions) and not was_refused


def may_live(terms: Terms, write: Write, moment: int) -> bool:
    """Whether the written value may still be live for some peer."""
    expiry = latest_of(_expiries(terms, write))
    return expiry == NEVER or expiry > true_ms(moment) - terms.slack_ms


def may_be_dead(terms: Terms, write: Write, moment: int) -> bool:
    """Whether the written value may have expired for some peer."""
    first = min(_expiries(terms, write) - {NEVER}, default=NEVER)
    return first != NEVER and first <= true_ms(moment) + terms.slack_ms


def _expiries(terms: Terms, write: Write) -> set[int]:
    return write.allowed_by_any() if terms.shares_epochs else write.allowed()


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
        if is_acked and overlap(terms, level, write, end) and write.acked > last_removed:
            return write
    return None
