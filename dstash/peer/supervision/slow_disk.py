"""Logs when commits take long, and when that is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from dstash import events

_log = structlog.get_logger("dstash.peer")

#: A commit that takes longer than this (seconds) is slow: clients notice.
SLOW_S: Final = 1.0
#: Seconds between two lines about slow commits, and without one until that is over.
_LOG_INTERVAL_S: Final = 60.0
_OVER_AFTER_S: Final = 30.0


class SlowDisk:
    """Logs the slow commits of one peer.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._last = self._next_log_line = 0.0
        self._commits = 0
        self._longest = 0.0

    def committed(self, seconds: float, synced: float) -> None:
        """Take note of a commit that took ``seconds``, ``synced`` of them for the sync."""
        if seconds >= SLOW_S:
            self._commits += 1
            self._note(seconds, synced_s=round(synced, 1))

    def watch(self, committing: float) -> None:
        """Log what is due; ``committing`` is for how long (seconds) the present commit has run."""
        if committing >= SLOW_S:
            self._note(committing)
        elif self._since is not None and self._clock() - self._last >= _OVER_AFTER_S:
            for_s = round(self._last - self._since)
            figures = {"commits": self._commits, "longest_s": round(self._longest, 1)}
            _log.info(events.DISK_NOT_SLOW, for_s=for_s, **figures)
            self._since, self._commits, self._longest = None, 0, 0.0

    def _note(self, seconds: float, **figures: float) -> None:
        now = self._last = self._clock()
        self._longest = max(self._longest, seconds)
        if self._since is None:
            self._since = now
        if now >= self._next_log_line:
            self._next_log_line = now + _LOG_INTERVAL_S
            _log.warning(
                events.DISK_SLOW,
                commit_s=round(seconds, 1),
                longest_s=round(self._longest, 1),
                commits=self._commits,
                **figures,
            )
