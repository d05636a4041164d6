"""Which versions of the protocol this code speaks, and how two sides find one in common."""

from __future__ import annotations

from typing import Any, Final

from dstash.errors import VersionMismatch

#: The lowest and highest protocol version this code speaks. A connection begins under the lowest;
#: once both sides have said what they speak (``Hello``, ``Welcome``), requests on it go under the
#: highest that both do, and a reply goes under the version of its request.
LOWEST_PROTOCOL: Final = 1
HIGHEST_PROTOCOL: Final = 2
#: From this version on a peer knows ``Want.CONTENT``.
CONTENT_DIGESTS: Final = 2


def is_spoken(version: int) -> bool:
    """Whether this side reads messages of a version."""
    return LOWEST_PROTOCOL <= version <= HIGHEST_PROTOCOL


def common_protocol(lowest: object, highest: object) -> int | None:
    """Return the highest version that this side and one that speaks those have in common."""
    if not isinstance(lowest, int) or not isinstance(highest, int):
        return None
    shared = min(highest, HIGHEST_PROTOCOL)
    return shared if shared >= max(lowest, LOWEST_PROTOCOL) else None


def mismatch(theirs: str, **details: Any) -> VersionMismatch:
    """Return the error that says which versions are spoken here, and what came instead."""
    spoken = f"{LOWEST_PROTOCOL} to {HIGHEST_PROTOCOL}"
    details |= {"lowest": LOWEST_PROTOCOL, "highest": HIGHEST_PROTOCOL}
    return VersionMismatch(f"protocol version {theirs}; this side speaks {spoken}", **details)
