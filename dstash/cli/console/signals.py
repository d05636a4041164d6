"""Signals that end a command: SIGTERM and SIGHUP take the path of Ctrl-C.

So files that are not complete are removed, and a command says how far it got.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_HANDLED: Final = (signal.SIGTERM, signal.SIGHUP)
_SIGNAL_EXIT_BASE: Final = 128


class Ending:
    """The signal that has ended the command, if any."""

    def __init__(self) -> None:
        self.number = 0

    def code(self, code: int) -> int:
        """Return the exit code: that of shells for a signal, if there was one, else ``code``."""
        return _SIGNAL_EXIT_BASE + self.number if self.number else code

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal as Ctrl-C is handled now, which may be later than at once."""
        self.number = number
        on_interrupt = signal.getsignal(signal.SIGINT)
        if callable(on_interrupt):
            on_interrupt(signal.SIGINT, frame)
        else:  # the caller has us ignore Ctrl-C
            raise KeyboardInterrupt


#: Of the command that runs.
_ending: Ending | None = None


def has_ended() -> bool:
    """Return whether a signal has ended the command: a shell must not continue with the next
    line."""
    return _ending is not None and _ending.number != 0


@contextmanager
def at_prompt() -> Iterator[None]:
    """Let the signals end the process at once: the user types, and there are no files to remove."""
    earlier = {number: signal.signal(number, signal.SIG_DFL) for number in _HANDLED}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


class Remembered:
    """The signals that have arrived, oldest first."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def take(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal."""
        self.numbers.append(number)


@contextmanager
def remembered() -> Iterator[Remembered]:
    """Remember the signals that end a command, while the block runs; raise the first after it.

    For work that an exception at any moment would break: ``subprocess`` loses a child whose start
    is interrupted, and may wait forever for one if its ``wait`` is.
    """
    signals = Remembered()
    earlier = {number: signal.getsignal(number) for number in (*_HANDLED, signal.SIGINT)}
    ours = [number for number, handler in earlier.items() if handler is not signal.SIG_IGN]
    try:
        for number in ours:  # a signal may end this, too
            signal.signal(number, signals.take)
        yield signals
    finally:
        for number in ours:
            signal.signal(number, earlier[number])
        if signals.numbers:
            signal.raise_signal(signals.numbers[0])


@contextmanager
def handled() -> Iterator[Ending]:
    """Handle the signals while the block runs, except those that the caller has us ignore."""
    global _ending
    ending = _ending = Ending()
    earlier = {number: signal.getsignal(number) for number in _HANDLED}
    ours = [number for number in _HANDLED if earlier[number] is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, ending.take)
    try:
        yield ending
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
