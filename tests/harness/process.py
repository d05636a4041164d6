"""Processes that end with the tests, even if these are killed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def expirable(command: Sequence[str]) -> list[str]:
    """Return ``command`` changed so that the kernel kills it when its parent ends."""
    if shutil.which("setpriv") is None:
        return list(command)
    return ["setpriv", "--pdeathsig", "KILL", "--", *command]
