"""Requests of a future epoch, which wait until this peer has read the topology of that epoch.

Their senders have a newer topology, which this peer usually reads from the membership within
milliseconds. A request with an invented epoch expires.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from dstash.peer.admission.requests import Request

_MAX_REQUESTS: Final = 1000
_MAX_WAIT_MS: Final = 1000


class FutureEpochRequests:
    """A bounded queue, in the order of arrival.

    Args:
        max_bytes: of requests that may wait.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[Request] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, request: Request) -> bool:
        """Keep a request; returns False when too many wait already."""
        if len(self._waiting) >= _MAX_REQUESTS or self._bytes + request.size > self._max_bytes:
            return False
        self._waiting.append(request)
        self._bytes += request.size
        return True

    def take(self) -> list[Request]:
        """Remove and return all requests."""
        waiting, self._waiting, self._bytes = self._waiting, deque(), 0
        return list(waiting)

    def expired(self, now: int) -> list[Request]:
        """Remove and return the requests that have waited too long."""
        late = []
        while self._waiting and now - self._waiting[0].came > _MAX_WAIT_MS:
            late.append(self._waiting.popleft())
            self._bytes -= late[-1].size
        return late
