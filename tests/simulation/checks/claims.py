"""Check of I6: a peer suspects its store only for a reason."""

from __future__ import annotations

from collections.abc import Iterator

from dstash.peer.background.claims import SUSPECTED
from tests.simulation.checks.registry import Run, Violation, When, check


@check(When.RECOVERED)
def no_suspicion(run: Run) -> Iterator[Violation]:
    """Check that no claim of a client is left: every old copy has been streamed again."""
    for node in run.world.nodes:
        if node.core is not None and SUSPECTED in node.core.health.problems.values():
            yield Violation("I6", None, f"{node.name}: {SUSPECTED}")
