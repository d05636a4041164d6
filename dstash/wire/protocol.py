"""The supported protocol versions, and the negotiation of a common version."""

from __future__ import annotations

from typing import Any, Final

from dstash.errors import VersionMismatch

#: The lowest and highest supported protocol version. A connection begins with the lowest. After
#: ``Hello`` and ``Welcome`` requests use the highest version that both sides support, and a reply
#: uses the version of its request.
LOWEST_PROTOCOL: Final = 1
HIGHEST_PROTOCOL: Final = 2
#: The first version with ``Want.CONTENT``.
CONTENT_DIGESTS: Final = 2


def is_spoken(version: int) -> bool:
    """Whether this side supports a version."""
    return LOWEST_PROTOCOL <= version <= HIGHEST_PROTOCOL


def common_protocol(lowest: object, highest: object) -> int | None:
    """Return the highest version that both sides support; None if there is none."""
    if not isinstance(lowest, int) or not isinstance(highest, int):
        return None
    shared = min(highest, HIGHEST_PROTOCOL)
    return shared if shared >= max(lowest, LOWEST_PROTOCOL) else None


def mismatch(theirs: str, **details: Any) -> VersionMismatch:
    """Return the error that names the supported versions and the received version."""
    spoken = f"{LOWEST_PROTOCOL} to {HIGHEST_PROTOCOL}"
    details |= {"lowest": LOWEST_PROTOCOL, "highest": HIGHEST_PROTOCOL}
    return VersionMismatch(f"protocol version {theirs}; this side speaks {spoken}", **details)
