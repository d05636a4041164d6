"""Blocking queries in a thread, so that a waiting ``watch`` can be woken at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Final

import structlog

from dstash import threads
from dstash.errors import MembershipUnreachable

_log = structlog.get_logger("dstash.membership")

#: Waits for changes after an index; returns the new index and a value to compare.
Query = Callable[[int], tuple[int, Hashable]]

_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 2.0
#: The pause after a reply without a change, because Consul may reply early, even at once.
_UNCHANGED_PAUSE_S: Final = 0.05


class Watcher:
    """Runs a blocking query repeatedly, from the first ``watch`` until ``close``."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self._condition = threading.Condition()
        self._seen: Hashable = None  # nothing seen yet: the first reply is a change
        self._is_changed = False
        self._is_woken = False
        self._is_closed = False
        self._error: MembershipUnreachable | None = None
        self._thread: threading.Thread | None = None

    def watch(self, timeout: float) -> bool:
        """Wait for a change; False after ``timeout`` seconds, ``wake`` or ``close``.

        Raises:
            MembershipUnreachable: the last query failed. The next query is already running.
        """
        self._start()
        with self._condition:
            self._condition.wait_for(self._has_news, timeout)
            error, self._error = self._error, None
            self._is_woken = False
            if error is not None:
                raise error
            is_changed, self._is_changed = self._is_changed, False
            return is_changed

    def wake(self) -> None:
        """End a waiting ``watch``, or else the next call."""
        with self._condition:
            self._is_woken = True
            self._condition.notify_all()

    def close(self) -> None:
        """Run no further query. The caller must abort the running query, then call ``join``."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def join(self) -> None:
        """Wait for the thread to end."""
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        with self._condition:
            if self._thread is None and not self._is_closed:
                self._thread = threads.thread(
                    self._run, name="dstash-watch", may_end=lambda: self._is_closed
                )
                self._thread.start()

    def _has_news(self) -> bool:
        return self._is_changed or self._is_woken or self._is_closed or self._error is not None

    def _run(self) -> None:
        index, pause = 0, _FIRST_PAUSE_S
        while not self._is_closed:
            try:
                found, seen = self._query(index)
            except Exception as error:  # this thread must not end: it detects every change
                self._report(error)
                # A Consul that lost its data counts from the beginning.
                index = 0
                self._rest(pause)
                pause = min(_MAX_PAUSE_S, pause * 2)
                continue
            index, pause = (found if found >= index else 0), _FIRST_PAUSE_S
            if not self._compare(seen):
                self._rest(_UNCHANGED_PAUSE_S)

    def _report(self, error: Exception) -> None:
        if not isinstance(error, MembershipUnreachable):
            _log.error("a query failed", exc_info=error)
            error = MembershipUnreachable(f"a query failed: {error!r}")
        with self._condition:
            if not self._is_closed:  # else ``close`` aborted the query
                self._error = error
            self._condition.notify_all()

    def _compare(self, seen: Hashable) -> bool:
        """Record the value seen; return whether it differs from the last value."""
        with self._condition:
            self._error = None
            if seen == self._seen:
                return False
            self._seen, self._is_changed = seen, True
            self._condition.notify_all()
            return True

    def _rest(self, seconds: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed, seconds)
