"""A histogram of times in bounded memory, exact to a tenth of a percent."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

#: A bucket is at most 1/1024 as wide as its smallest value; values below 2048 have one each.
_BITS: Final = 11


class Histogram:
    """Counts whole numbers in buckets whose width grows with the value (log-linear).

    The method of HdrHistogram (Gil Tene). There are 1024 buckets for each power of two.

    Attributes:
        count: how many values were added.
        largest: the largest of them; 0 if there are none.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all values."""
        self.count = 0
        self.largest = 0
        self._sum = 0
        self._buckets: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Add a value that is not negative."""
        self.count += 1
        self.largest = max(self.largest, value)
        self._sum += value
        self._buckets[_bucket(value)] += 1

    def mean(self) -> float:
        """Return the mean of the values; 0 if there are none. It is exact."""
        return self._sum / self.count if self.count else 0.0

    def percentile(self, percent: float) -> int:
        """Return the smallest value that ``percent`` of the values do not exceed, rounded up.

        The result is at most 1/1024 larger than the exact one; 0 if there are no values.

        Args:
            percent: 0 to 100.
        """
        wanted = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(_highest(bucket), self.largest)
        return 0


def _bucket(value: int) -> int:
    shift = max(0, value.bit_length() - _BITS)
    return (shift << (_BITS - 1)) + (value >> shift)


def _highest(bucket: int) -> int:
    """Return the largest value in a bucket."""
    shift = max(0, (bucket >> (_BITS - 1)) - 1)
    return ((bucket - (shift << (_BITS - 1)) + 1) << shift) - 1
