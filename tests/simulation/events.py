"""Virtual time: a heap of future events."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

MS: Final = 1_000
SECOND: Final = 1_000_000

Action = Callable[..., object]


class Events:
    """Future events in order. Time is in whole microseconds since the start of the world."""

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Action, tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: int, action: Action, *args: Any) -> None:
        """Call ``action(*args)`` at a time; equal times run in the order of the calls."""
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, action, args))

    def after(self, delay: int, action: Action, *args: Any) -> None:
        """Call ``action(*args)`` after ``delay``."""
        self.at(self.now + delay, action, *args)

    def run_until(self, end: int, stop: Callable[[], bool] = lambda: False) -> bool:
        """Run events until ``end`` or ``stop``; return whether it was ``stop``."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            if stop():
                return True
            self.now, _, action, args = heapq.heappop(heap)
            action(*args)
        if stop():
            return True
        self.now = end
        return False
