"""Sizes, durations and rates as text."""

from __future__ import annotations

import re
from typing import Final

from dstash.errors import UsageError

_UNITS: Final = {
    "": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3,
}  # fmt: skip
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME: Final = re.compile(r"(-?\d+(?:\.\d+)?) *([smhd]?)", re.IGNORECASE)
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?) *([kmg]i?)?b?(?:/s)?", re.IGNORECASE)


def parse_rate(text: str | None) -> int:
    """Return bytes per second; 0 selects the default (``off``, or nothing given)."""
    if text is None or text.strip().lower() in ("off", "0"):
        return 0
    found = _RATE.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"{text!r} is not a rate; allowed are forms like 20MB/s, 500kB/s, 1.5MiB/s, or off"
        )
    rate = round(float(found[1]) * _UNITS[(found[2] or "").lower()])
    if rate < 1:
        raise UsageError(f"rate {text!r} is below 1 byte per second")
    return rate


def parse_time(text: str) -> float:
    """Return the seconds of a duration such as ``15m``."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is not a time; allowed are forms like 90, 1.5s, 15m, 12h, 7d")
    return float(found[1]) * _SECONDS[found[2].lower()]


def size(number: float | None) -> str:
    """Return a number of bytes in the largest unit that fits."""
    if number is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def rough_duration(seconds: float | None) -> str:
    """Return seconds in the largest unit that fits, rounded down, for a narrow column."""
    return duration(seconds).partition(" ")[0]


def duration(seconds: float | None) -> str:
    """Return seconds as days, hours, minutes and seconds."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s"))
    return " ".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
