"""The form of an announcement outside a process: JSON, so that an operator can read it."""

from __future__ import annotations

import functools
import json
from typing import Any

from dstash.cluster.membership.interface import Announcement


def encode(announcement: Announcement) -> bytes:
    """Return the JSON form."""
    return json.dumps(announcement._asdict(), sort_keys=True).encode()


@functools.lru_cache(maxsize=1024)  # the same is read ten times a second
def decode(data: bytes | None) -> Announcement | None:
    """Return the announcement; None when it is not one, or only a part of one.

    Unknown fields are ignored, so that peers of the next version may add some.
    """
    try:
        return _checked(json.loads(data or b""))
    except (ValueError, TypeError, RecursionError):
        return None


def _checked(raw: dict[str, Any]) -> Announcement:
    if not isinstance(raw, dict) or not isinstance(raw.get("peer"), str):
        raise TypeError("not an announcement")
    return Announcement(**{name: raw[name] for name in Announcement._fields if name in raw})
