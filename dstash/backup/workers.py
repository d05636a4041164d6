"""Threads that work on many pieces, until all are done, one fails, or the user interrupts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import Final, TypeVar

from dstash.errors import DStashError

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Seconds between two reports of progress.
_REFRESH_S: Final = 0.1


class Stopped(DStashError):
    """This piece is abandoned: another piece failed, or the user interrupted."""


class Workers:
    """Threads that end together.

    Args:
        count: the number of threads.
        on_progress: called at short intervals, on the thread that waits.
    """

    def __init__(self, count: int, on_progress: Callable[[], None]) -> None:
        self._count = count
        self._on_progress = on_progress
        self._stop = threading.Event()

    def check(self) -> None:
        """Raise ``Stopped`` if the threads must end."""
        if self._stop.is_set():
            raise Stopped("stopped")

    def pause(self, seconds: float) -> None:
        """Wait, but end once ``check`` would raise."""
        self._stop.wait(seconds)

    def run(self, work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """Do the work on each item; return the results, in no particular order.

        Raises:
            Exception: the first failure; the other threads have ended then.
            KeyboardInterrupt: the user interrupted.
        """
        done: list[_R] = []
        with _interrupts_kept() as check, ThreadPoolExecutor(self._count, "backup") as pool:
            waiting = {pool.submit(work, item) for item in items}
            try:
                while waiting:
                    ended, waiting = wait(waiting, _REFRESH_S, FIRST_COMPLETED)
                    done += [future.result() for future in ended]
                    self._on_progress()
                    check()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return done


@contextmanager
def _interrupts_kept() -> Iterator[Callable[[], None]]:
    """Defer Ctrl-C until the yielded function is called; a second Ctrl-C has effect at once.

    Python raises ``KeyboardInterrupt`` between any two instructions of the main thread, even right
    after it has acquired the lock of a future. Then the lock is never released: the worker that
    sets the result blocks forever, and so does the wait for the workers.
    """
    interrupted = False

    def keep(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check  # Python would not raise it
        return
    signal.signal(signal.SIGINT, keep)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    check()
