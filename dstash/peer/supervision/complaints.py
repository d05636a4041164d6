"""Repeated failures: each kind is logged once a minute, with the number of occurrences."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Final

import structlog

from dstash.errors import DStashError

_log = structlog.get_logger("dstash.peer")

#: Seconds between two log lines about one kind of failure.
_LOG_INTERVAL_S: Final = 60.0


class Complaints:
    """Logs the failures of one activity.

    Args:
        event: the text of the log lines.
        clock: returns monotonic seconds.
    """

    def __init__(self, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._event = event
        self._clock = clock
        self._due: dict[str, float] = {}
        self._unlogged: dict[str, int] = {}

    def log(self, error: Exception) -> None:
        """Log a failure if it is due; with a traceback unless it is a ``DStashError``."""
        kind, now = _kind(error), self._clock()
        self._unlogged[kind] = self._unlogged.get(kind, 0) + 1
        if now < self._due.get(kind, now):
            return
        self._due[kind] = now + _LOG_INTERVAL_S
        times = self._unlogged.pop(kind)
        defect = None if isinstance(error, DStashError) else error
        _log.error(self._event, error=str(error) or repr(error), times=times, exc_info=defect)


def _kind(error: Exception) -> str:
    """Return the class and the place of a failure, which define its kind."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__} {where}"
