"""Watches who reads a store next to its peer, and whether one holds a snapshot for too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

from dstash import events
from dstash.store.sharing.reader_table import Readers, ReaderTable

_log = structlog.get_logger("dstash.peer")

#: How often (seconds) the table of readers is read.
_INTERVAL_S: Final = 2.0


class ReadableStore(Protocol):
    """A store with a table of readers."""

    def tend(self) -> None:
        """Run the periodic checks."""

    def readers(self) -> tuple[str, int]:
        """Return the table of read transactions as text, and the number of the last one."""


class ReaderWatch:
    """Runs the periodic checks of a store, and watches its readers.

    Args:
        store: the store.
        show: shows a problem to operators; an empty text ends it.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        store: ReadableStore,
        show: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.readers = Readers()
        #: Called on the thread of the watch as long as a reader holds a snapshot for too long, so
        #: that the data file grows. A compaction ends that: readers of the old file do not hold the
        #: pages of the new one.
        self.on_held: Callable[[Readers], None] = lambda readers: None
        self._store = store
        self._show = show
        self._clock = clock
        self._table = ReaderTable()
        self._next_look = clock()
        self._was_held = False

    def tend(self) -> None:
        """Run the periodic checks of the store, and look at the readers every two seconds."""
        self._store.tend()
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + _INTERVAL_S
        readers = self.readers = self._table.take(*self._store.readers(), now)
        if readers.is_too_old != self._was_held:
            self._was_held = readers.is_too_old
            if readers.is_too_old:
                seconds = round(readers.oldest_s)
                _log.warning(events.SNAPSHOT_HELD, pid=readers.process, seconds=seconds)
                self._show(
                    f"process {readers.process} has read from the store for {seconds} s; until it "
                    "ends or continues, the data file grows with each commit"
                )
            else:
                self._show("")
                _log.info(events.SNAPSHOT_RELEASED)
        if readers.is_too_old:
            self.on_held(readers)

    def describe(self) -> dict[str, Any]:
        """Return the readers for the status."""
        readers = self.readers
        return {"known": readers.known, "oldest_s": round(readers.oldest_s, 1)}
