"""Announcements: how live peers describe themselves.

Outside a process an announcement is JSON, so that an operator can read it.
"""

from __future__ import annotations

import functools
import json
from typing import Any, Final, NamedTuple

#: What this version can do beyond earlier ones; see ``Member.features``.
FEATURES: Final = "drop registers index-settings register-floors registers-last"


class Announcement(NamedTuple):
    """What a live peer publishes with its lock.

    ``state`` is free text for people (``candidate``, ``member``, ...). ``key``, ``plain`` and
    ``features`` are those of ``Member``.
    """

    peer: str
    address: str
    store_id: str
    zone: str
    weight: float
    http: str = ""
    state: str = ""
    key: str = ""
    plain: str = ""
    features: str = ""


def encode(announcement: Announcement) -> bytes:
    """Return the JSON form."""
    return json.dumps(announcement._asdict(), sort_keys=True).encode()


@functools.lru_cache(maxsize=1024)  # the same bytes are read several times a second
def decode(data: bytes | None) -> Announcement | None:
    """Return the announcement; None if the data is not a complete announcement.

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
