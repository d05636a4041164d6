"""Whether a delete reports correctly that the key existed: I6."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.checks.judgement import surely_there
from tests.simulation.checks.registry import Run, Violation, check
from tests.simulation.history import describe_write


@check()
def deletes(run: Run) -> Iterator[Violation]:
    """Check that no delete denies that a key was there that surely was.

    A peer that starts again has forgotten what the earlier tries of a delete found.
    """
    if not run.terms.keeps_order:
        return
    for place, writes in run.history.writes.items():
        for delete in writes:
            if delete.found is not False or delete.acked is None:
                continue
            if any(delete.invoked <= start <= delete.returned for start in run.history.starts):
                continue
            put = surely_there(
                run.terms, delete.level, writes, delete.invoked, delete.returned, delete
            )
            if put is not None:
                text = f"{describe_write(delete)} found nothing; there was {describe_write(put)}"
                yield Violation("I6", place, text)
