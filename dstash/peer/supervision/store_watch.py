"""A thread that looks after what the store cannot look after by itself."""

from __future__ import annotations

import threading
from typing import Final, Protocol

import structlog

from dstash import threads

_log = structlog.get_logger("dstash.peer")

#: How often (seconds) the store is looked at, and how often when that fails.
_INTERVAL: Final = 0.5
_AFTER_FAILURE: Final = 10.0


class Tended(Protocol):
    """A store that is to be looked after."""

    def tend(self) -> None:
        """Look after what is beside the records."""


class StoreWatch:
    """Calls ``tend`` of a store regularly."""

    def __init__(self, store: Tended) -> None:
        self._store = store
        self._stop = threading.Event()
        self._thread = threads.thread(self._run, name="store watch", may_end=self._stop.is_set)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, before the store is closed."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause = _INTERVAL
        while not self._stop.wait(pause):
            try:
                self._store.tend()
                pause = _INTERVAL
            except Exception:  # this thread must not end: a file that is cut off would go unseen
                _log.exception("cannot look after the store")
                pause = _AFTER_FAILURE
