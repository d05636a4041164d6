"""The watchdog: watches the threads of a peer, and bounds the time of a stop.

A thread that hangs shows in the health check. When a thread ends, the peer stops, and a supervisor
starts it again. If a stop takes too long for any reason, the process is ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

import structlog

from dstash import events, log, threads
from dstash.errors import DStashError

_log = structlog.get_logger("dstash.peer")

#: Seconds between two checks of the threads.
_CHECK_INTERVAL_S: Final = 1.0
#: Seconds that a stop may take beyond the time to answer accepted requests.
STOP_MARGIN: Final = 5.0
#: How many frames of a stack are logged.
_MAX_FRAMES: Final = 12


class Pulse(NamedTuple):
    """A watched thread: it hangs if ``seconds_quiet`` returns more than ``limit`` seconds."""

    name: str
    seconds_quiet: Callable[[], float]
    limit: float


class Watchdog:
    """Finds threads that have ended or hang.

    Args:
        failed: called once, with the error, when a thread has ended.
        stop: stops the peer; thread-safe.
        stop_limit: seconds after which a stop is forced.
    """

    def __init__(
        self, failed: Callable[[DStashError], None], stop: Callable[[], None], stop_limit: float
    ) -> None:
        self._failed = failed
        self._stop = stop
        self._stop_limit = stop_limit
        self._pulses: list[Pulse] = []
        self._ended: list[str] = []
        self._hanging: frozenset[str] = frozenset()
        self._deadline = float("inf")
        self._signals, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: int | None = None
        self._closed = threading.Event()
        self._unlisten = threads.listen(self._thread_ended)
        self._thread = threads.thread(self._run, name="watchdog", may_end=self._closed.is_set)

    def watch(self, name: str, seconds_quiet: Callable[[], float], limit: float) -> None:
        """Report a thread as hanging when it is quiet for more than ``limit`` seconds."""
        self._pulses.append(Pulse(name, seconds_quiet, limit))

    def start(self) -> None:
        """Start the watchdog; called by the main thread.

        The C part of Python's signal handling writes to the pipe at once, also while the main
        thread is blocked and runs no handler.
        """
        self._before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self._thread.start()

    def stopping(self) -> None:
        """Bound the time of the stop that begins now."""
        self._deadline = min(self._deadline, time.monotonic() + self._stop_limit)

    def problems(self) -> list[str]:
        """Return the problems of the threads, as text."""
        hanging = [
            f"thread {pulse.name} has hung for {quiet:.0f} s"
            for pulse in self._pulses
            if (quiet := pulse.seconds_quiet()) > pulse.limit
        ]
        return [*self._ended, *hanging]

    def close(self) -> None:
        """Stop watching; called by the main thread."""
        self._unlisten()
        self._closed.set()
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        if self._thread.is_alive():
            os.write(self._wakeup, b"\0")
            self._thread.join()
        os.close(self._signals)
        os.close(self._wakeup)

    def _thread_ended(self, name: str, why: str) -> None:
        text = f"thread {name} has ended ({why})"
        self._ended.append(text)
        self._failed(DStashError(f"{text}; start the peer again, and report the log as a defect"))

    # -- the thread

    def _run(self) -> None:
        while not self._closed.is_set():
            left = self._deadline - time.monotonic()
            if left <= 0:
                self._force()
            ready = select.select([self._signals], [], [], min(left, _CHECK_INTERVAL_S))[0]
            if ready:
                self._take_signals(os.read(self._signals, 64))
            self._report_hanging()

    def _take_signals(self, numbers: bytes) -> None:
        if {signal.SIGTERM, signal.SIGINT} & set(numbers):
            self.stopping()
            self._stop()

    def _report_hanging(self) -> None:
        hanging = frozenset(p.name for p in self._pulses if p.seconds_quiet() > p.limit)
        for name in hanging - self._hanging:
            _log.error(events.THREAD_HANGS, thread=name, stack=_stack(name))
        for name in self._hanging - hanging:
            _log.info(events.THREAD_CONTINUES, thread=name)
        self._hanging = hanging

    def _force(self) -> NoReturn:
        _log.error("the stop takes too long; ending the process", stack=_stack("MainThread"))
        log.say("dstash-peer: the stop took too long, and was cut short; nothing acked is lost")
        log.flush()
        os._exit(1)


def _stack(name: str) -> list[str]:
    """Return where a thread is, the innermost frame last."""
    frames = sys._current_frames()
    found = [thread.ident for thread in threading.enumerate() if thread.name == name]
    frame = frames.get(found[0] or 0) if found else None
    summary = traceback.extract_stack(frame)[-_MAX_FRAMES:] if frame is not None else []
    return [f"{line.filename}:{line.lineno} {line.name}" for line in summary]
