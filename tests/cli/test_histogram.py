"""Percentiles of a histogram against those of the sorted values."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from dstash.cli.histogram import Histogram

#: How much larger than the exact percentile a result may be.
MAX_ERROR = 1 / 1024


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def exact(values: list[int], percent: float) -> int:
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=200),
    st.sampled_from([0, 50, 90, 99, 99.9, 100]),
)
def test_percentile_is_within_the_error_of_the_exact_one(values: list[int], percent: float) -> None:
    found, right = filled(values).percentile(percent), exact(values, percent)
    assert right <= found <= right * (1 + MAX_ERROR)


def test_small_values_are_exact() -> None:
    values = random.Random(1).choices(range(2048), k=5000)
    histogram = filled(values)
    for percent in range(101):
        assert histogram.percentile(percent) == exact(values, percent)


def test_mean_count_and_largest_are_exact() -> None:
    values = [random.Random(2).randrange(10**9) for _ in range(1000)]
    histogram = filled(values)
    assert histogram.mean() == sum(values) / len(values)
    assert (histogram.count, histogram.largest) == (len(values), max(values))


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    histogram = filled(list(range(0, 1 << 20, 7)))
    assert len(histogram._buckets) <= 2048 + 1024 * 9


def test_cleared_histogram_is_empty() -> None:
    histogram = filled([5, 10**6])
    histogram.clear()
    assert (histogram.count, histogram.largest, histogram.mean()) == (0, 0, 0)
    assert histogram.percentile(99) == 0
    histogram.add(7)
    assert histogram.percentile(50) == 7
