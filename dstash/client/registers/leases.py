"""Leases: how long a holder may rely on a register with a time to live.

A holder counts from before the request that created or renewed the register, on a monotonic clock
that also counts while the machine is suspended. So its lease ends before the register does, if
clocks run at the same speed.

A forked child has a copy of the lease, but its parent holds the register: the child neither learns
of renewals and of the release, nor may it release what the parent relies on.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, Final

from dstash.errors import LimitError, LockLost
from dstash.limits import MAX_TTL_SECONDS, show_number

#: A lease is renewed when this part of it has passed, and a failed renewal is tried again after
#: another part.
_RENEW_AFTER: Final = 1 / 3
_RETRY_AFTER: Final = 1 / 12

_SHORTEST_S: Final = 0.5


class Lease:
    """The lease of one holder.

    Args:
        what: names it in errors.
        ttl: seconds that a renewal lasts.
    """

    def __init__(self, what: str, ttl: float) -> None:
        self.what = what
        self.ttl = ttl
        #: When it ends without a renewal, in seconds of the monotonic clock.
        self.end = 0.0
        #: When it must be renewed next.
        self.due = 0.0
        self._reason = ""
        self._process = os.getpid()

    def begin(self, asked: float) -> None:
        """Begin or renew; ``asked`` is the time before the request."""
        self.end = asked + self.ttl
        self.due = asked + self.ttl * _RENEW_AFTER

    def retry(self, now: float) -> None:
        """Renew again soon, because a renewal failed."""
        self.due = now + self.ttl * _RETRY_AFTER

    def lose(self, reason: str) -> None:
        """End it now."""
        self._reason = self._reason or reason

    def left(self, now: float) -> float:
        """Return the seconds that it lasts without a renewal; 0 if it ended, or after a fork."""
        is_ours = not self._reason and self._process == os.getpid()
        return max(0.0, self.end - now) if is_ours else 0.0

    def check(self, now: float) -> None:
        """Raise ``LockLost`` if it has ended, or belongs to the parent of this process."""
        if self._process != os.getpid():
            raise LockLost(f"{self.what} is held by the parent process, not by this one")
        if self.left(now) <= 0:
            reason = self._reason or f"it could not be renewed for {self.ttl:g} s"
            raise LockLost(f"{self.what} is not held any more: {reason}")


def check_lease_ttl(ttl: Any) -> float:
    """Return the time to live of a lock in seconds, given as a number of them or a timedelta.

    Raises:
        LimitError: it is neither, or out of range.
    """
    return check_seconds("ttl", ttl.total_seconds() if isinstance(ttl, timedelta) else ttl)


def check_seconds(name: str, value: Any, lowest: float = _SHORTEST_S) -> float:
    """Return a number of seconds.

    Raises:
        LimitError: it is none, or out of range.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not lowest <= value < MAX_TTL_SECONDS:
        raise LimitError(
            f"{name} is {show_number(value)}; allowed is a number of seconds from {lowest:g} to "
            "100 years"
        )
    return float(value)
