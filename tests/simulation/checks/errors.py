"""Check of I6: the class of an error matches the outcome of the call."""

from __future__ import annotations

from collections.abc import Iterator

from dstash.errors import DiskFull, TimedOut
from dstash.types import Outcome
from tests.simulation.checks.registry import Run, Violation, check
from tests.simulation.history import describe_write


@check()
def error_classes(run: Run) -> Iterator[Violation]:
    """Check that a write raises ``TimedOut`` if, and only if, its outcome is unknown."""
    for place, writes in run.history.writes.items():
        for write in writes:
            if write.raised is None:
                continue
            is_unknown = write.outcome is Outcome.UNKNOWN
            if is_unknown != isinstance(write.raised, TimedOut):
                text = f"{describe_write(write)} raises {type(write.raised).__name__}"
                yield Violation("I6", place, text)


@check()
def room(run: Run) -> Iterator[Violation]:
    """Check that reads need no disk space, and that deletes succeed while there is a reserve."""
    for failure in run.history.failures:
        if isinstance(failure.error, DiskFull):
            text = f"{failure.client} could not read at {failure.level}: {failure.error!r}"
            yield Violation("I6", failure.place, text)
    if run.world.lowest_room < _ENOUGH:
        return
    for place, writes in run.history.writes.items():
        for write in writes:
            if write.kind == "delete" and isinstance(write.raised, DiskFull):
                yield Violation("I6", place, f"{describe_write(write)}: there was a reserve")


#: With at least this many bytes free throughout, every tombstone had room.
_ENOUGH = 1_000
