"""Compaction of the store of a running peer: by order, and by itself when much of it is unused."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

from dstash import events, threads
from dstash.cpu_scheduling import LONG, use_time_slice
from dstash.errors import Busy, DStashError
from dstash.store.interface import StoreStats
from dstash.store.online.compaction import Compacted, Progress

_log = structlog.get_logger("dstash.peer")

#: How often (seconds) the size of the store is looked at.
_INTERVAL_S: Final = 10.0
#: A compaction that is due begins within this time (seconds): the replicas of a partition fill and
#: empty their stores alike, and should not all be compacted at once.
_SPREAD_S: Final = 600.0
#: How long (seconds) none begins by itself after one was given up.
_RETRY_S: Final = 3600.0


class CompactableStore(Protocol):
    """A store that can be compacted while it is used."""

    def compact(
        self, progress: Progress | None = None, cancelled: threading.Event | None = None
    ) -> Compacted:
        """Give unused space back to the disk."""

    def stats(self) -> StoreStats:
        """Return sizes."""


class Schedule:
    """Decides when a store is compacted without an order. It reads no clock.

    Args:
        when_free: the share of the data file that must be unused; 0 for never.
        min_bytes: a smaller data file is left alone.
        chance: returns a number from 0 to 1, by which a compaction that is due is delayed.
    """

    def __init__(
        self, when_free: float, min_bytes: int, chance: Callable[[], float] = random.random
    ) -> None:
        self._when_free = when_free
        self._min_bytes = min_bytes
        self._chance = chance
        self._begins_at: float | None = None
        self._not_before = float("-inf")

    def may_begin(self, now: float) -> bool:
        """Whether a compaction may begin by itself: it is on, and none was given up lately."""
        return bool(self._when_free) and now >= self._not_before

    def is_due(self, used: int, unused: int, now: float) -> bool:
        """Whether a compaction begins now.

        Args:
            used: bytes of the data file.
            unused: bytes of it that are unused.
            now: seconds of a clock that never goes back.
        """
        if not self.may_begin(now) or used < self._min_bytes or unused < self._when_free * used:
            self._begins_at = None
            return False
        if self._begins_at is None:
            self._begins_at = now + self._chance() * _SPREAD_S
        return now >= self._begins_at

    def given_up(self, now: float) -> None:
        """Note that a compaction was given up."""
        self._not_before = now + _RETRY_S


class Compactions:
    """Compacts one store, on a thread of its own.

    Args:
        store: the store.
        schedule: decides when it is compacted without an order.
        clock: returns monotonic seconds.
        interval: how often (seconds) the size of the store is looked at.
    """

    def __init__(
        self,
        store: CompactableStore,
        schedule: Schedule,
        clock: Callable[[], float] = time.monotonic,
        interval: float = _INTERVAL_S,
    ) -> None:
        self._interval = interval
        self._store = store
        self._schedule = schedule
        self._clock = clock
        self._lock = threading.Lock()
        self._reason = ""
        self._is_running = False
        self._progress = Progress()
        self._ended = self._given_up = 0
        self._last: Compacted | None = None
        self._why_given_up = ""
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threads.thread(self._run, name="compaction", may_end=self._stop.is_set)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the compaction that runs, before the store is closed."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def order(self, reason: str = "ordered") -> None:
        """Begin a compaction soon.

        Raises:
            Busy: one runs already.
        """
        with self._lock:
            if self._is_running or self._reason:
                raise Busy("a compaction of this peer runs already; `dstash status` shows it")
            self._reason = reason
        self._wake.set()

    def suggest(self, reason: str) -> None:
        """Begin a compaction, unless one runs, they begin by order only, or one was given up."""
        with self._lock:
            is_wanted = not (self._is_running or self._reason)
            if is_wanted and self._schedule.may_begin(self._clock()):
                self._reason = reason
                self._wake.set()

    def describe(self) -> dict[str, Any]:
        """Return the state for the status."""
        last, progress = self._last, self._progress
        return {
            "running": self._is_running or bool(self._reason),
            "step": progress.step.value if self._is_running else "",
            "copied": progress.copied if self._is_running else 0,
            "of": progress.of if self._is_running else 0,
            "ended": self._ended,
            "given_up": self._given_up,
            "why_given_up": self._why_given_up,
            "before": last.before if last else 0,
            "after": last.after if last else 0,
            "seconds": round(last.took, 3) if last else 0.0,
            "held_seconds": round(last.held, 4) if last else 0.0,
        }

    def _run(self) -> None:
        use_time_slice(LONG)  # clients do not wait for this thread
        while not self._stop.is_set():
            self._wake.wait(self._interval)
            self._wake.clear()
            if not self._stop.is_set():
                self._look()

    def _look(self) -> None:
        try:
            stats = self._store.stats()
            if self._schedule.is_due(stats.used_bytes, stats.unused_bytes, self._clock()):
                self._reason = self._reason or "unused space"
            if self._reason:
                self._compact(stats)
        except Exception as error:  # a defect: this thread must not end, and the store is used
            _log.exception("a compaction failed")
            self._note_given_up(repr(error))
        finally:
            with self._lock:
                self._is_running, self._reason = False, ""

    def _compact(self, stats: StoreStats) -> None:
        with self._lock:
            self._is_running, self._progress = True, Progress()
        sizes = {"used_bytes": stats.used_bytes, "unused_bytes": stats.unused_bytes}
        _log.info(events.COMPACTION_BEGUN, why=self._reason, **sizes)
        try:
            done = self._store.compact(self._progress, self._stop)
        except DStashError as error:
            _log.warning(events.COMPACTION_GIVEN_UP, why=str(error))
            self._note_given_up(str(error))
            return
        self._last, self._why_given_up = done, ""
        self._ended += 1
        _log.info(
            events.COMPACTION_ENDED,
            records=done.records,
            before_bytes=done.before,
            after_bytes=done.after,
            seconds=round(done.took, 1),
            held_seconds=round(done.held, 3),
        )

    def _note_given_up(self, why: str) -> None:
        self._why_given_up = why
        self._given_up += 1
        self._schedule.given_up(self._clock())
