"""Waiting for what happens elsewhere, without sleeping for longer than it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds for what happens at once on a machine that has nothing else to do.
PATIENCE = 60.0

_POLL = 0.02
#: The longest pause between two looks, after one that took as long.
_LONGEST_POLL = 0.25


def wait_until(predicate: Callable[[], T], timeout: float, what: str) -> T:
    """Call ``predicate`` until it gives something true, and return that.

    Args:
        predicate: called every 20 ms, or less often if a call takes longer than that: what is
            waited for needs the processor too.
        timeout: seconds.
        what: what is waited for, for the message of the failure.

    Raises:
        AssertionError: it did not happen in time.
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
    """Call ``count`` until it gives the same twice, ``seconds`` apart, and return that.

    Raises:
        AssertionError: it did not come to rest within ``timeout`` seconds.
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
    """Fail as soon as ``predicate`` gives something false during ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert predicate(), f"no longer so: {what}"
        time.sleep(_POLL)
