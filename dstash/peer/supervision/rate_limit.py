"""A rate limit for log lines: anyone can cause some of them, as often as they like."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final

#: The most kinds that are remembered; above it, the least recent one is forgotten.
_MAX_KINDS: Final = 1000


class RateLimit:
    """Admits at most ``burst`` lines of each kind in ``period`` units of time.

    Args:
        burst: lines.
        period: in the unit of the times that are passed in.
    """

    def __init__(self, burst: int, period: float) -> None:
        self._burst = burst
        self._period = period
        self._admitted: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def admits(self, kind: Hashable, now: float) -> bool:
        """Whether a line of a kind may be logged now; it counts as logged then."""
        times = self._admitted.setdefault(kind, deque(maxlen=self._burst))
        self._admitted.move_to_end(kind)
        while len(self._admitted) > _MAX_KINDS:
            self._admitted.popitem(last=False)
        if len(times) == self._burst and now - times[0] < self._period:
            return False
        times.append(now)
        return True
