"""How fast records move between peers, so that requests feel little of it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import chain
from typing import Any, Final

from dstash.cluster.replication.handlers import PAGE_BYTES
from dstash.cluster.replication.replica import Replica, effort
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.limits import MIB

Counting = Generator[Effect, Any, int]

#: Tasks that fill a peer side by side; each keeps to its share of the rate.
STREAMS: Final = 2
#: Who orders a higher rate (bytes a second) than this wants data to move first of all.
_GENTLE_RATE: Final = 32 * MIB
#: Everybody else wants requests to feel little of it: at most so much (effort) moves in a second.
#: Of records of 100 B that is some 100,000, of larger ones more than 30 MB.
_GENTLE_EFFORT: Final = 42_000_000
#: Pages (effort) that take little time to give, to take in and to sync. They grow, to the second
#: size at most, where that is too little to reach the rate.
_GENTLE_PAGE: Final = 80 * 1024
_GENTLE_LARGEST_PAGE: Final = 320 * 1024


#: How long a change of the rate may take to be noticed.
_RATE_MS: Final = 200
#: What comes in late may hurry until it has made up for this long at most.
_CREDIT_MS: Final = 50


def page_bytes(rate: int, took: int = 0, share: float = 1.0) -> int:
    """Return how large a page should be (effort).

    Args:
        took: how long (milliseconds) the last one took.
        share: the part of its effort that the bytes of its records made up.
    """
    if rate > _GENTLE_RATE:
        return PAGE_BYTES
    a_second = min(_GENTLE_EFFORT, rate / share) if rate else _GENTLE_EFFORT
    needed = round(a_second * took / (1000 * STREAMS))
    return min(_GENTLE_LARGEST_PAGE, max(_GENTLE_PAGE, needed))


class Throttle:
    """Keeps one task to the rate, on average over some milliseconds.

    What fills a peer moves gently besides, whatever the rate, if it is not a high one: so that
    requests feel little of it.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._due = float(replica.now())

    def take_in(self, entries: Sequence[tuple[bytes, bytes]]) -> Counting:
        """Count what a filler took in, and wait; returns what it weighs (bytes)."""
        weight = weight_of(entries)
        self._replica.progress.records += len(entries)
        self._replica.progress.bytes += weight
        yield from self.keep(STREAMS * weight, STREAMS * effort(weight, len(entries)))
        return weight

    def keep(self, weight: int, toil: int = 0) -> Generator[Effect, Any, None]:
        """Wait until another ``weight`` bytes may come, which take ``toil`` (effort) to move."""
        # By the moment when the ones before were due, not when they came: clocks of milliseconds
        # and wake-ups that are late would add up.
        begin = self._due
        while (takes := self._takes(weight, toil)) is not None:
            self._due = begin + takes
            left = int(self._due - self._replica.now())
            if left <= 0:
                break
            yield Pause(min(_RATE_MS, left))
        now = float(self._replica.now())
        # Without a bound nothing is due later, whatever was while there was one.
        self._due = now if takes is None else max(self._due, now - _CREDIT_MS)

    def _takes(self, weight: int, toil: int) -> float | None:
        """Return how long (milliseconds) it should take; None when as short as it goes."""
        rate = self._replica.rate
        at_rate = 1000 * weight / rate if rate else None
        if rate > _GENTLE_RATE or not toil:
            return at_rate
        return max(at_rate or 0.0, 1000 * toil / _GENTLE_EFFORT)


def weight_of(entries: Sequence[tuple[bytes, bytes]]) -> int:
    """Return how many bytes keys and records have."""
    return sum(map(len, chain.from_iterable(entries)))
