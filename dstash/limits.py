"""The limits of the data model and the wire.

Clients check them before they send. Peers check them again, because a client may be written in
another language or be hostile.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final

from dstash.errors import LimitError

#: A time to live: a number of seconds, or a timedelta.
Ttl = float | timedelta

MIB: Final = 1024 * 1024

#: P, the number of hash slots. It decides the placement of data and never changes.
PARTITIONS: Final = 4096

MAX_INDEX_BYTES: Final = 64
#: An LMDB key holds 511 bytes: partition (2) + index length (1) + index (64) + key (400) fit.
MAX_KEY_BYTES: Final = 400
MAX_VALUE_BYTES: Final = 8 * MIB
#: Size of one ZeroMQ frame. A value of the largest size fits together with its key.
MAX_FRAME_BYTES: Final = 16 * MIB
MAX_FRAME_PARTS: Final = 8
MAX_KEYS_PER_FRAME: Final = 65_536
#: 100 years of 365.25 days, in seconds.
MAX_TTL_SECONDS: Final = 100 * 31_557_600
MAX_HEADER_BYTES: Final = 4 * MIB

#: Messages show larger integers as a power of 10.
_SHOWN_IN_FULL: Final = 10**24

#: Number of earlier versions that a write may replace.
MOST_REPLACED: Final = 8

#: Default of how far ahead of the cluster clock a version may be (milliseconds), and the name of
#: this setting among the limits that a peer reports.
MAX_CLOCK_SKEW_MS: Final = 500
CLOCK_SKEW_LIMIT: Final = "max_clock_skew_ms"


def check_index(name: str) -> bytes:
    """Return the UTF-8 form of an index name; ``LimitError`` if it is not allowed."""
    if not isinstance(name, str):
        raise LimitError(f"index name must be str, not {type(name).__name__}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise LimitError(f"index name {name!r} is not valid Unicode text") from None
    if not 1 <= len(encoded) <= MAX_INDEX_BYTES:
        raise LimitError(
            f"index name has {len(encoded)} bytes; allowed are 1 to {MAX_INDEX_BYTES} bytes"
        )
    if not name.isprintable() or name != name.strip():
        raise LimitError(
            f"index name {name!r} has control characters or outer spaces; "
            "allowed are printable characters"
        )
    return encoded


def show_number(number: object) -> str:
    """Return a number as short text for messages, whether it is valid or not."""
    if isinstance(number, int) and abs(number) >= _SHOWN_IN_FULL:
        return f"about {'-' if number < 0 else ''}10**{math.log10(abs(number)):.0f}"
    text = str(number) if isinstance(number, int | float) else repr(number)
    return text if len(text) <= 40 else f"{text[:37]}..."


def check_ttl(ttl: Ttl | None, name: str = "ttl") -> int | None:
    """Return a time to live as whole milliseconds, at least 1; None stays None.

    Args:
        ttl: seconds, or a timedelta.
        name: of the argument, for errors.

    Raises:
        LimitError: it is of another type, not above 0, or 100 years or more.
    """
    if ttl is None:
        return None
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        kind = type(ttl).__name__
        raise LimitError(f"{name} must be a number of seconds or a timedelta, not {kind}")
    if not 0 < seconds < MAX_TTL_SECONDS:  # false for NaN too
        raise LimitError(
            f"{name} is {show_number(seconds)} s; allowed is more than 0 s and less than 100 years"
        )
    return max(1, round(seconds * 1000))
