"""Threads whose unexpected end is noticed.

A thread that ends by an exception, or returns without being stopped, leaves a process that looks
healthy but does only part of its work. Every thread of a peer is created here: its end is logged,
and listeners are called, so that the process can stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from dstash import events
from dstash.logger import Logger

_log = Logger("dstash.threads")

#: Called with the name of a thread that ended and why, on that thread.
Listener = Callable[[str, str], None]

_listeners: Final[list[Listener]] = []


def thread(
    target: Callable[..., object],
    *args: Any,
    name: str,
    may_end: Callable[[], bool] = lambda: False,
) -> threading.Thread:
    """Return a daemon thread that is not started yet.

    Args:
        target: the function that it runs, with ``args``.
        name: of the thread, for the log.
        may_end: whether the thread was stopped, so that its return is not a failure.
    """
    return threading.Thread(target=_run, args=(target, args, name, may_end), name=name, daemon=True)


def listen(listener: Listener) -> Callable[[], None]:
    """Call ``listener`` when a thread ends unexpectedly; returns a function that undoes this."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def _run(
    target: Callable[..., object], args: tuple[Any, ...], name: str, may_end: Callable[[], bool]
) -> None:
    why = "it returned"
    try:
        target(*args)
        if may_end():
            return
        _log.error(events.THREAD_ENDED, thread=name)
    except BaseException as error:  # SystemExit, too, would end it silently
        why = f"{type(error).__name__}: {error}"
        _log.error(events.THREAD_ENDED, thread=name, exc_info=True)
    for listener in tuple(_listeners):
        listener(name, why)
