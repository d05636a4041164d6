"""Check of counts: between the keys that look-ups must find and those that they may find."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.checks.reads import ReadChecker
from tests.simulation.checks.registry import Run, Violation, check
from tests.simulation.history import Counted, Read


@check()
def counts(run: Run) -> Iterator[Violation]:
    """Check every count against the keys that a scan might have returned."""
    checker = ReadChecker(run.history, run.terms)
    for counted in run.history.counted:
        places = [place for place in run.history.writes if place[0] == counted.index]
        reads = [[_read(counted, place, value) for value in (None, True)] for place in places]
        least = sum(checker.check(missing) is not None for missing, _ in reads)
        most = sum(checker.check(found) is None for _, found in reads)
        if not least <= counted.number <= most:
            when = f"{counted.invoked / 1e6:.6f}..{counted.returned / 1e6:.6f}"
            text = (
                f"{counted.client} counted {counted.number} keys of {counted.index} at "
                f"{counted.level} ({when}), where there were {least} to {most}"
            )
            yield Violation("I1" if counted.number < least else "I3", None, text)


def _read(counted: Counted, place: tuple[str, str], value: object) -> Read:
    client, _, level, invoked, returned, _ = counted
    return Read(client, place, level, invoked, returned, value, is_blind=value is not None)
