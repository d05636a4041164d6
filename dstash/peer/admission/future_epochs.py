"""Requests that came under an epoch which this peer has not heard of yet.

Whoever sent them knows a newer topology; the membership will tell of it in a moment, and then they
are handled. An epoch that was made up is never heard of: who waits for it is refused in the end.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from dstash.peer.admission.requests import Request

#: How many may wait; and for how long (milliseconds) they do.
_MOST: Final = 1000
_PATIENCE_MS: Final = 1000


class FutureEpochRequests:
    """Keeps them in the order in which they came.

    Args:
        most_bytes: what may wait.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._waiting: deque[Request] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, request: Request) -> bool:
        """Keep a request; False when too many wait already."""
        if len(self._waiting) >= _MOST or self._bytes + request.size > self._most_bytes:
            return False
        self._waiting.append(request)
        self._bytes += request.size
        return True

    def take(self) -> list[Request]:
        """Return all of them, and keep none."""
        waiting, self._waiting, self._bytes = self._waiting, deque(), 0
        return list(waiting)

    def expired(self, now: int) -> list[Request]:
        """Return those that have waited too long, and forget them."""
        late = []
        while self._waiting and now - self._waiting[0].came > _PATIENCE_MS:
            late.append(self._waiting.popleft())
            self._bytes -= late[-1].size
        return late
