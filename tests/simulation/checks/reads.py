"""Checks of I1, I2 and I3: what reads may return.

If the levels of a read and a write overlap, I1 and I3 apply at once. For all other acked writes
they apply to the reads after recovery.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dstash.types import Level
from dstash.version import ZERO, Version
from tests.simulation.checks.judgement import (
    keeps_one,
    may_be_dead,
    may_count,
    may_live,
    overlap,
)
from tests.simulation.checks.registry import Run, Terms, Violation, check
from tests.simulation.history import History, Read, Write
from tests.simulation.trace import show_version


@check()
def reads(run: Run) -> Iterator[Violation]:
    """Check every read against every write of its key."""
    checker = ReadChecker(run.history, run.terms)
    for read in run.history.reads:
        violation = checker.check(read)
        if violation is not None:
            yield violation


class ReadChecker:
    """Checks the reads in turn."""

    def __init__(self, history: History, terms: Terms) -> None:
        self._history = history
        self._terms = terms

    def check(self, read: Read) -> Violation | None:
        """Return the violation by a read, None if there is none."""
        writes = self._history.writes.get(read.place, [])
        known = [write for write in writes if write.invoked <= read.returned]
        floor, by = self._floor(read, known)
        if read.value is None:
            return self._check_missing(read, known, floor, by)
        return self._check_found(read, known, floor, by)

    # -- what must be there

    def _floor(self, read: Read, known: Iterable[Write]) -> tuple[Version, Write | None]:
        """Return the lowest version that this read may return, and the write that has it."""
        floor, by = ZERO, None
        for write in known:
            if write.acked is None or write.returned > read.invoked:
                continue
            if write.acked > floor and self._overlaps(read, write):
                floor, by = write.acked, write
        return floor, by

    def _overlaps(self, read: Read, write: Write) -> bool:
        if read.is_last:
            return write.level is not Level.ONE or keeps_one(self._terms, write, read.returned)
        return overlap(self._terms, read.level, write, read.returned)

    # -- what may be there

    def _check_found(
        self, read: Read, known: list[Write], floor: Version, by: Write | None
    ) -> Violation | None:
        if read.is_blind:
            candidates = [write for write in known if not write.removes]
        else:
            candidates = [
                write for write in known if not write.removes and write.value == read.value
            ]
        if not candidates:
            return self._violation("I2", read, "was never written")
        candidates = [write for write in candidates if may_count(self._terms, write)]
        if not candidates:
            return self._violation("I2", read, "was definitely not stored")
        if read.version is not None and self._terms.keeps_order:
            restamped = self._history.restamped
            if read.version not in restamped:
                candidates = [write for write in candidates if read.version in write.versions]
            if not candidates:
                return self._violation("I2", read, "has a version that was never written")
        fresh = [write for write in candidates if self._is_fresh(write, floor, by)]
        if not fresh:
            kind = "I3" if by is not None and by.removes else "I1"
            return self._violation(kind, read, f"is older than {_describe(by)}")
        if not any(may_live(self._terms, write, read.invoked) for write in fresh):
            return self._violation("I3", read, "had expired")
        return None

    def _is_fresh(self, write: Write, floor: Version, by: Write | None) -> bool:
        """Whether a write may have superseded the write of the floor."""
        if max(write.versions) >= floor:
            return True
        is_later = by is not None and write.returned > by.invoked
        return is_later and not self._terms.keeps_order

    def _check_missing(
        self, read: Read, known: list[Write], floor: Version, by: Write | None
    ) -> Violation | None:
        if by is None:
            return None
        for write in known:
            is_dead = write.removes or may_be_dead(self._terms, write, read.returned)
            is_fresh = is_dead and may_count(self._terms, write)
            if is_fresh and self._is_fresh(write, floor, by):
                return None
        return self._violation("I1", read, f"misses {_describe(by)}")

    def _violation(self, invariant: str, read: Read, why: str) -> Violation:
        what = "nothing" if read.value is None else repr(read.value)
        version = f" {show_version(read.version)}" if read.version else ""
        when = f"{read.invoked / 1e6:.6f}..{read.returned / 1e6:.6f}"
        text = f"{read.client} read {what}{version} at {read.level} ({when}), which {why}"
        return Violation(invariant, read.place, text)


def _describe(write: Write | None) -> str:
    if write is None:
        return "nothing"
    acked = show_version(write.acked) if write.acked else "?"
    what = "" if write.removes else f" of {write.value!r}"
    return f"the {write.kind}{what} acked at {write.level} to {write.client} ({acked})"
