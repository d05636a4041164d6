"""Other processes that die with the tests, even when those are killed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def expirable(command: Sequence[str]) -> list[str]:
    """Return ``command`` such that the kernel kills it when the process that starts it dies."""
    if shutil.which("setpriv") is None:
        return list(command)
    return ["setpriv", "--pdeathsig", "KILL", "--", *command]
