"""Check of I6: a delete reports correctly whether the key existed."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.checks.judgement import surely_there
from tests.simulation.checks.registry import Run, Violation, check
from tests.simulation.history import describe_write


@check()
def deletes(run: Run) -> Iterator[Violation]:
    """Check that a delete of a key that certainly existed does not report it as missing.

    A restarted peer has forgotten the results of earlier attempts of a delete.
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
