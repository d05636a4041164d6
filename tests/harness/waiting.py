"""Waiting for events in other processes, without unnecessary sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Timeout in seconds for events that are immediate on an idle machine.
PATIENCE = 60.0

_POLL = 0.02
#: The longest pause between two calls, after a call of the same duration.
_LONGEST_POLL = 0.25


def wait_until(predicate: Callable[[], T], timeout: float, what: str) -> T:
    """Call ``predicate`` until it returns a true value, and return that.

    Args:
        predicate: called every 20 ms, or less often if a call takes longer, to leave the CPU to
        other processes.
        timeout: seconds.
        what: describes the event in the error message.

    Raises:
        AssertionError: the timeout passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        if found := predicate():
            return found
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what} (last seen: {found!r})")
        time.sleep(min(max(now - began, _POLL), _LONGEST_POLL))


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
    while time.monotonic() < deadline:
        assert predicate(), f"no longer so: {what}"
        time.sleep(_POLL)
