"""The same work on many pieces side by side, until all is done, one fails, or somebody stops it."""

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

#: How often (seconds) progress is told.
_REFRESH: Final = 0.1


class Stopped(DStashError):
    """Another piece failed, or the user has had enough: this one is given up."""


class Workers:
    """Threads that end together.

    Args:
        count: how many.
        told: called now and then, from the thread that waits.
    """

    def __init__(self, count: int, told: Callable[[], None]) -> None:
        self._count = count
        self._told = told
        self._stop = threading.Event()

    def check(self) -> None:
        """Raise ``Stopped`` in a thread that should end."""
        if self._stop.is_set():
            raise Stopped("given up")

    def pause(self, seconds: float) -> None:
        """Wait, but not for longer than until ``check`` would raise."""
        self._stop.wait(seconds)

    def run(self, work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """Do the work on each item; returns the results, in no particular order.

        Raises:
            whatever the first failure was; the other threads have ended then.
            KeyboardInterrupt: the user has had enough.
        """
        done: list[_R] = []
        with _interrupts_kept() as check, ThreadPoolExecutor(self._count, "backup") as pool:
            waiting = {pool.submit(work, item) for item in items}
            try:
                while waiting:
                    ended, waiting = wait(waiting, _REFRESH, FIRST_COMPLETED)
                    done += [one.result() for one in ended]
                    self._told()
                    check()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return done


@contextmanager
def _interrupts_kept() -> Iterator[Callable[[], None]]:
    """Keep Ctrl-C until what is yielded is called, and raises it; a second one hits at once.

    Python raises ``KeyboardInterrupt`` between any two steps of the main thread, also where it
    has just taken the lock of a future: nobody lets go of it then, and the thread whose result
    that is waits for ever, and with it whoever waits for the threads to end.
    """
    came = False

    def keep(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check  # nobody would raise it
        return
    signal.signal(signal.SIGINT, keep)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    check()
