"""Checks of the invariants after a run: one module per family, registered by ``@check``.

- I1: an acked write is readable, or superseded by a higher version that was really written.
- I2: a read returns no value that was never written or whose write failed.
- I3: deleted and expired values do not come back.
- I4: after recovery, replicas are equal.
- I6: processes survive, clients end, and the results that clients get are true.

To add a check, write a module of this package::

    @check()
    def name(run: Run) -> Iterator[Violation]:
        ...
"""

from __future__ import annotations

from tests.simulation.checks.registry import (
    CHECKS,
    CHECKS_PENDING,
    Run,
    Terms,
    Violation,
    When,
    check,
    judge,
)
from tests.simulation.registry import import_all

__all__ = ["CHECKS", "CHECKS_PENDING", "Run", "Terms", "Violation", "When", "check", "judge"]

import_all(__name__, __path__)
