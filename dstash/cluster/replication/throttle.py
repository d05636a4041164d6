"""The rate at which records move between peers, kept low enough not to slow requests."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import chain
from typing import Any, Final

from dstash.cluster.replication.replica import Replica, effort
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.limits import MIB
from dstash.wire.packing import PAGE_BYTES

Counting = Generator[Effect, Any, int]

#: Streaming tasks that run concurrently on a peer; each gets its share of the rate.
STREAMS: Final = 2
#: A rate above this (bytes a second) means that moving data has priority over requests.
_MAX_GENTLE_RATE: Final = 32 * MIB
#: Otherwise requests have priority, and at most this effort moves in a second: about 100,000
#: records of 100 B, or more than 30 MB of larger ones.
_MAX_GENTLE_EFFORT: Final = 42_000_000
#: Size (effort) of a page that is quick to read, merge and sync. Pages grow up to the second size
#: where the first one is too small to reach the rate.
_GENTLE_PAGE: Final = 80 * 1024
_MAX_GENTLE_PAGE: Final = 320 * 1024

#: Longest single pause: a new rate takes effect after it.
_MAX_PAUSE_MS: Final = 200
#: A late task may exceed the rate to compensate for at most this time.
_MAX_CREDIT_MS: Final = 50


def page_bytes(rate: int, took: int = 0, share: float = 1.0) -> int:
    """Return the size of the next page (effort).

    Args:
        rate: bytes a second; 0: no limit.
        took: how long (milliseconds) the last page took.
        share: the part of the last page's effort that was due to the bytes of its records.
    """
    if rate > _MAX_GENTLE_RATE:
        return PAGE_BYTES
    per_second = min(_MAX_GENTLE_EFFORT, rate / share) if rate else _MAX_GENTLE_EFFORT
    needed = round(per_second * took / (1000 * STREAMS))
    return min(_MAX_GENTLE_PAGE, max(_GENTLE_PAGE, needed))


class Throttle:
    """Limits one task to a rate, on average over some milliseconds.

    Unless the rate is high, streaming is also limited in effort, so that requests stay fast.

    Args:
        replica: of this peer.
        rate: returns the bytes a second that may move now; 0 for no rate limit.
    """

    def __init__(self, replica: Replica, rate: Callable[[], int]) -> None:
        self._replica = replica
        self._rate = rate
        self._due = float(replica.now())

    def take_in(self, entries: Sequence[tuple[bytes, bytes]]) -> Counting:
        """Count records that streaming has merged, and wait; returns their size (bytes)."""
        weight = weight_of(entries)
        self._replica.progress.records += len(entries)
        self._replica.progress.bytes += weight
        yield from self.keep(STREAMS * weight, STREAMS * effort(weight, len(entries)))
        return weight

    def keep(self, weight: int, cost: int = 0) -> Generator[Effect, Any, None]:
        """Wait until ``weight`` more bytes may move, which cost ``cost`` (effort)."""
        # Counted from when the previous bytes were due, not from when they moved: otherwise the
        # rounding of the clock and late wake-ups would add up.
        begin = self._due
        while (takes := self._takes(weight, cost)) is not None:
            self._due = begin + takes
            left = int(self._due - self._replica.now())
            if left <= 0:
                break
            yield Pause(min(_MAX_PAUSE_MS, left))
        now = float(self._replica.now())
        # With no rate limit, any accumulated debt is discarded.
        self._due = now if takes is None else max(self._due, now - _MAX_CREDIT_MS)

    def _takes(self, weight: int, cost: int) -> float | None:
        """Return how long (milliseconds) the move should take; None without a limit."""
        rate = self._rate()
        at_rate = 1000 * weight / rate if rate else None
        if rate > _MAX_GENTLE_RATE or not cost:
            return at_rate
        return max(at_rate or 0.0, 1000 * cost / _MAX_GENTLE_EFFORT)


def weight_of(entries: Sequence[tuple[bytes, bytes]]) -> int:
    """Return the total size of keys and records (bytes)."""
    return sum(map(len, chain.from_iterable(entries)))
