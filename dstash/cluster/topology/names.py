"""Encoding of user-chosen names for file names and URL paths."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from dstash.errors import MembershipError

#: A file name may have 255 bytes, and suffixes are added.
MAX_BYTES: Final = 240


def safe_name(name: str) -> str:
    """Return the name of a peer, cluster or lock in percent-encoding, which is unique per name.

    Raises:
        MembershipError: the name is empty, too long, or not valid Unicode.
    """
    try:
        quoted = quote(name, safe=" ")
    except UnicodeEncodeError:
        raise MembershipError(f"{name!r} is not valid Unicode text") from None
    if quoted.startswith("."):  # not a hidden file, ``.`` or ``..``
        quoted = f"%2E{quoted[1:]}"
    if not 1 <= len(quoted) <= MAX_BYTES:
        raise MembershipError(
            f"name {name[:40]!r} has {len(quoted)} bytes in percent-encoding; "
            f"allowed are 1 to {MAX_BYTES}"
        )
    return quoted
