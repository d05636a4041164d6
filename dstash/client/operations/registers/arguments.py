"""The arguments of calls on registers, checked before anything is sent."""

from __future__ import annotations

from typing import Any, Final

from dstash.errors import LimitError
from dstash.limits import Ttl, check_ttl
from dstash.version import Stamp
from dstash.wire.registers import KEEP, MAX_INTEGER, MIN_INTEGER, MISSING, NEVER_EXPIRES, Amounts

_MAX_VERSION: Final = (1 << 64) - 2


def kept_ttl(ttl: Ttl | None) -> int:
    """Return a time to live for a request; None keeps the present expiry."""
    milliseconds = check_ttl(ttl)
    return KEEP if milliseconds is None else milliseconds


def new_ttl(ttl: Ttl | None) -> int:
    """Return a time to live for a request; None is for ever."""
    milliseconds = check_ttl(ttl)
    return NEVER_EXPIRES if milliseconds is None else milliseconds


def check_version(version: Any, lowest: int = 1) -> Stamp:
    """Return the version that a register must have.

    Args:
        version: as a call or an ``Entry`` returned it.
        lowest: 1, or ``MISSING`` if the key may have to be absent.

    Raises:
        LimitError: it is no version.
    """
    if not _is_integer(version) or not lowest <= version <= _MAX_VERSION:
        absent = ", or 0 for a key that does not exist" if lowest == MISSING else ""
        raise LimitError(
            f"version is {version!r}; allowed is a version that a call on this key has "
            f"returned{absent}"
        )
    return int(version)


def check_fence(fence: Any) -> Stamp:
    """Return a fencing token; 0 for None.

    Raises:
        LimitError: it is no token.
    """
    if fence is None:
        return 0
    if not _is_integer(fence) or not 1 <= fence <= _MAX_VERSION:
        raise LimitError(f"fence is {fence!r}; allowed is the token of a lock")
    return int(fence)


def check_amounts(by: Any, initial: Any, at_least: Any, at_most: Any) -> Amounts:
    """Return the numbers of an increment; a bound of None does not limit the sum.

    Raises:
        LimitError: a number is not an integer, leaves 64 bits, or the bounds allow nothing.
    """
    low = MIN_INTEGER if at_least is None else at_least
    high = MAX_INTEGER if at_most is None else at_most
    named = {"by": by, "initial": initial, "at_least": low, "at_most": high}
    for name, number in named.items():
        if not _is_integer(number) or not MIN_INTEGER <= number <= MAX_INTEGER:
            raise LimitError(f"{name} is {number!r}; allowed are integers from -2**63 to 2**63-1")
    if low > high:
        raise LimitError(f"at_least is {low}, above at_most {high}; no sum is allowed")
    return Amounts(by, initial, low, high)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
