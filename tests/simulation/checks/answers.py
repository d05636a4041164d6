"""Check of I6: processes survive, and clients get correct results."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.checks.registry import Run, Violation, check


@check()
def survival(run: Run) -> Iterator[Violation]:
    """Report events that must never happen, as they were recorded."""
    for text in run.history.broken:
        yield Violation("I6", None, text)
