"""The store watch: a thread that runs the periodic checks of the store."""

from __future__ import annotations

import threading
from typing import Final, Protocol

import structlog

from dstash import threads

_log = structlog.get_logger("dstash.peer")

#: How often (seconds) the store is checked, and how often after a failure.
_INTERVAL_S: Final = 1.0
_RETRY_INTERVAL_S: Final = 10.0


class Tended(Protocol):
    """A store with periodic checks."""

    def tend(self) -> None:
        """Run the periodic checks."""


class StoreWatch:
    """Calls ``tend`` of a store regularly."""

    def __init__(self, store: Tended) -> None:
        self._store = store
        self._stop = threading.Event()
        self._thread = threads.thread(self._run, name="store watch", may_end=self._stop.is_set)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, before the store is closed."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause = _INTERVAL_S
        while not self._stop.wait(pause):
            try:
                self._store.tend()
                pause = _INTERVAL_S
            except Exception:  # this thread must not end: a truncated file would go unnoticed
                _log.exception("cannot check the store")
                pause = _RETRY_INTERVAL_S
