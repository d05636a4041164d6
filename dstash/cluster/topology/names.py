"""Names that people choose, in the form that file names and URL paths can hold."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from dstash.errors import MembershipError

#: A file name may have 255 bytes.
LONGEST: Final = 240


def safe_name(name: str) -> str:
    """Return a peer's, cluster's or lock's name with percent-encoding, another for each name.

    Raises:
        MembershipError: it is empty, too long, or no Unicode text.
    """
    try:
        quoted = quote(name, safe=" ")
    except UnicodeEncodeError:
        raise MembershipError(f"{name!r} is not valid Unicode text") from None
    if quoted.startswith("."):  # neither hidden, nor this folder, nor the one above
        quoted = f"%2E{quoted[1:]}"
    if not 1 <= len(quoted) <= LONGEST:
        raise MembershipError(
            f"{name[:40]!r} takes {len(quoted)} bytes with percent-encoding; "
            f"allowed are 1 to {LONGEST}"
        )
    return quoted
