"""Whether a run kept the invariants: each family of checks is a module, registered by ``@check``.

- I1: an acked write is readable, or beaten by a higher version that was really written.
- I2: nothing never written, or definitely failed, is ever read.
- I3: what was deleted or has expired does not come back.
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
