"""Waiting for events in other processes, without unnecessary sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Timeout in seconds for events that are immediate on an idle machine.
PATIENCE = 60.0

#: The shortest and the longest pause between two calls of a predicate, in seconds.
_SHORTEST_PAUSE = 0.01
_LONGEST_PAUSE = 0.25


def wait_until(predicate: Callable[[], T], timeout: float, what: str) -> T:
    """Call ``predicate`` until it returns a true value, and return that.

    Args:
        predicate: called ever less often, and less often still if a call takes long, to leave the
            CPU to the processes that are waited for.
        timeout: seconds.
        what: describes the event in the error message.

    Raises:
        AssertionError: the timeout passed.
    """
    first = time.monotonic()
    while True:
        began = time.monotonic()
        if found := predicate():
            return found
        now = time.monotonic()
        if now > first + timeout:
            raise AssertionError(f"not within {timeout:g} s: {what} (last seen: {found!r})")
        pause = max(_SHORTEST_PAUSE, (now - first) / 10, 3 * (now - began))
        time.sleep(min(pause, _LONGEST_PAUSE))


def wait_for_rest(count: Callable[[], T], seconds: float, timeout: float, what: str) -> T:
    """Call ``count`` until it returns the same value twice, ``seconds`` apart; return that.

    Raises:
        AssertionError: the value still changed after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    last = count()
    while True:
        time.sleep(seconds)
        found = count()
        if found == last:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not at rest within {timeout:g} s: {what} ({last!r}, {found!r})")
        last = found


def stays_true(predicate: Callable[[], object], seconds: float, what: str) -> None:
    """Fail as soon as ``predicate`` returns a false value within ``seconds``."""
    deadline = time.monotonic() + seconds
    while (began := time.monotonic()) < deadline:
        assert predicate(), f"no longer so: {what}"
        took = time.monotonic() - began
        time.sleep(min(max(2 * _SHORTEST_PAUSE, 3 * took), _LONGEST_PAUSE))
