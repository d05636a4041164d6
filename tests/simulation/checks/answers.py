"""Whether processes survive, and whether clients get true results: I6."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.checks.registry import Run, Violation, check


@check()
def survival(run: Run) -> Iterator[Violation]:
    """Report what should never be seen at all, as it was noted when it happened."""
    for text in run.history.broken:
        yield Violation("I6", None, text)
