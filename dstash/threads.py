"""Threads whose end does not go unnoticed.

A thread that ends by an exception, or returns although it was not told to stop, leaves a process
that looks well and does part of its work. Every thread of a peer is made here: its end is logged,
and the process is told, so that it can stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

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
        target: what it runs, with ``args``.
        name: of the thread, for the log.
        may_end: whether the thread has been told to stop, so that returning is no failure.
    """
    return threading.Thread(target=_run, args=(target, args, name, may_end), name=name, daemon=True)


def listen(listener: Listener) -> Callable[[], None]:
    """Have ``listener`` called when a thread ends that should not; returns what undoes this."""
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
        _log.error("a thread has ended", thread=name)
    except BaseException as error:  # SystemExit, too, would end it without a word
        why = f"{type(error).__name__}: {error}"
        _log.error("a thread has ended", thread=name, exc_info=True)
    for listener in tuple(_listeners):
        listener(name, why)
