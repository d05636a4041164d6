"""Rates, sizes and durations."""

from __future__ import annotations

import pytest

from dstash.cli.units import duration, parse_rate, parse_time, rough_duration, size
from dstash.errors import UsageError


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20MB/s", 20_000_000),
        ("20mb", 20_000_000),
        ("500kB/s", 500_000),
        ("1.5MiB/s", 1_572_864),
        ("1 GB/s", 10**9),
        ("4096", 4096),
        ("off", 0),
        ("0", 0),
        (None, 0),
    ],
)
def test_parse_rate_returns_bytes_per_second(text: str | None, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1MB/s", "20MB/h", "1e3", "0.1", "20 TB/s"])
def test_parse_rate_refuses_malformed_text(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5s", 1.5), ("15m", 900), ("12 h", 43_200), ("7D", 604_800), ("-1", -1)],
)
def test_parse_time_returns_seconds(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1w", "1h30m", "inf", "nan", "1e3", "one"])
def test_parse_time_refuses_malformed_text(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_time(text)


def test_size_and_duration_are_readable() -> None:
    assert [size(value) for value in (None, 0, 1024, 20_000_000)] == [
        "-",
        "0 B",
        "1.0 KiB",
        "19.1 MiB",
    ]
    assert [duration(value) for value in (None, 0.2, 61, 90_061)] == [
        "-",
        "0s",
        "1m 1s",
        "1d 1h 1m 1s",
    ]


def test_rough_duration_has_one_unit() -> None:
    seconds = (None, 0.2, 59, 337, 3599, 3600, 86_399, 90_061, 10_000 * 86_400 - 1)
    shown = ["-", "0s", "59s", "5m", "59m", "1h", "23h", "1d", "9999d"]
    assert [rough_duration(value) for value in seconds] == shown
