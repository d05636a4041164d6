"""The history of the load."""

from __future__ import annotations

import pytest

from dstash.errors import ProtocolError
from dstash.peer.telemetry.history import (
    KEPT,
    History,
    Sample,
    pack_samples,
    percentile,
    unpack_samples,
)
from dstash.peer.telemetry.meters import Meters

NOW = 1_700_000_000_000


def test_sample_has_the_difference_to_the_previous_sample() -> None:
    meters = Meters()
    meters.read_keys.observe(999)  # before the start of the history
    history = History(meters, NOW)
    meters.read_keys.observe(10)
    meters.read_keys.observe(30)
    meters.written_keys.observe(5)
    meters.commit_seconds.observe(0.004)
    history.note(NOW + 999)
    assert history.since(0) == [], "a second is not over"
    history.note(NOW + 1000)
    history.note(NOW + 2100)
    first, second = history.since(0)
    assert first[:5] == (NOW + 1000, 2, 1, 40, 5)
    assert (first.handling_p50, first.handling_p99) == (0, 0)
    assert 2500 < first.commit_p50 <= first.commit_p99 <= 5000, "microseconds"
    assert second == Sample(NOW + 2100)
    assert history.since(NOW + 1000) == [second]


def test_samples_are_taken_at_full_seconds() -> None:
    history = History(Meters(), NOW + 700)
    for late in (1000, 1900, 2050, 2990, 3001):
        history.note(NOW + late)
    assert [sample.at - NOW for sample in history.since(0)] == [1000, 2050, 3001]


def test_oldest_samples_are_dropped() -> None:
    history = History(Meters(), NOW)
    for second in range(1, KEPT + 100):
        history.note(NOW + 1000 * second)
    kept = history.since(0)
    assert (len(kept), kept[0].at) == (KEPT, NOW + 100_000)


def test_samples_round_trip() -> None:
    samples = [Sample(NOW, *range(1, 9)), Sample(NOW + 1000)]
    assert unpack_samples(pack_samples(samples)) == samples
    for wrong in (b"x", pack_samples(samples)[:-1], pack_samples([Sample(NOW)] * (KEPT + 1))):
        with pytest.raises(ProtocolError):
            unpack_samples(wrong)


def test_percentiles_lie_within_their_bucket() -> None:
    bounds = (0.001, 0.002, 0.004)
    assert percentile(bounds, [0, 0, 0, 0], 0.5) == 0
    assert percentile(bounds, [0, 10, 10, 10], 0.5) == 1500
    assert percentile(bounds, [4, 4, 4, 4], 1.0) == 1000
    assert percentile(bounds, [1, 1, 1, 100], 0.99) == 4000, "beyond the last bound"
