"""The names of indexes with registers, and the errors for operations on other indexes."""

from __future__ import annotations

from dstash.errors import LimitError, UsageError
from dstash.limits import check_index
from dstash.store.register.ballot import SIGN


def has_registers(index: str) -> bool:
    """Whether all operations of an index go through consensus: its name begins with ``@``."""
    return isinstance(index, str) and index.startswith(SIGN)


def check_name(index: str) -> bool:
    """Check the name of an index; return whether it has registers.

    Raises:
        LimitError: the name is not allowed.
    """
    check_index(index)
    if index == SIGN:
        raise LimitError(f"index name is {SIGN!r} alone; at least one character follows the {SIGN}")
    return has_registers(index)


def check_registers(index: str, what: str) -> None:
    """Check that an index has registers, for an operation that needs them.

    Args:
        index: of the call.
        what: the operation, as users know it.

    Raises:
        LimitError: the name is not allowed.
        UsageError: the index has plain records, whose last write wins.
    """
    if not check_name(index):
        raise UsageError(
            f"{what} needs an index whose name begins with {SIGN}, such as {SIGN + index!r}: in "
            f"index {index!r} the last write wins"
        )
