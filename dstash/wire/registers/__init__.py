"""The messages between a client and the home of registers: changes, and linearizable reads.

``docs/atomic.md`` has the rules. All keys of a request have the same replicas. Each key is decided
by itself; numbers inside byte strings have 8 bytes, big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

from dstash.errors import ProtocolError
from dstash.wire.shapes import Frame, Message, message, rarely_set

#: The expected version of an operation that succeeds with any.
ANY: Final = (1 << 64) - 1
#: The expected version of an operation that needs an absent register.
MISSING: Final = 0

#: The time to live of a change that keeps the present expiry.
KEEP: Final = 0
#: The time to live of a change after which the register never expires.
NEVER_EXPIRES: Final = (1 << 64) - 1

#: Registers of one request.
MAX_REGISTERS: Final = 1000

MAX_INTEGER: Final = (1 << 63) - 1
MIN_INTEGER: Final = -(1 << 63)

_NUMBER_BYTES: Final = 8
_AMOUNTS: Final = struct.Struct(">qqqq")


class ChangeKind(IntEnum):
    """What a change does. The numbers are used in messages."""

    #: Stores a value; ``expected`` makes it a compare-and-set, or an ``add`` with ``MISSING``.
    PUT = 1
    #: Stores a value and answers the value before.
    SWAP = 2
    #: Deletes and answers the value before.
    POP = 3
    DELETE = 4
    #: Adds to an integer and answers the sum.
    INCREMENT = 5
    #: Changes the expiry only.
    TOUCH = 6


class ChangeOutcome(IntEnum):
    """The outcome for one key. The numbers are used in messages."""

    APPLIED = 0
    #: The version or the fencing token is another; nothing was changed.
    CONFLICT = 1
    #: There was nothing to change.
    UNCHANGED = 2
    #: The request is too old to know whether it was applied before.
    FORGOTTEN = 3
    #: It was applied before, and its answer was too large to be kept.
    ANSWER_LOST = 4
    #: ``rejected`` has the error.
    REJECTED = 5
    #: The answer to a read: the register has a value.
    FOUND = 6
    #: The answer to a read: there is no such register.
    ABSENT = 7


@message
class Change(Message):
    """Changes registers, each key once; answered by ``Changed``.

    ``caller`` (8 bytes) and ``number`` identify the request: every copy of it has the same, and
    ``repeated`` is true in all but the first. ``operation`` is a ``ChangeKind``. ``ttl`` is in
    milliseconds; 0 keeps the present expiry, 2**64 - 1 removes it. ``fence`` is a fencing token, or
    0. ``expected`` has the version that the register must have, for each key or once for all keys;
    empty for any. ``amounts`` are those of ``INCREMENT``, likewise; see ``pack_amounts``.
    ``payloads`` has a value for each key of ``PUT`` and ``SWAP``, else nothing. In ``epoch`` the
    client made the number: no copy was sent in an earlier one. It is 0 if unknown. ``is_ahead``:
    the number is just above one that the register remembers, and may be ahead of the clocks.
    """

    KIND = 26
    index: str
    caller: bytes
    number: int
    repeated: bool
    operation: int
    ttl: int
    fence: int
    expected: bytes
    amounts: bytes
    keys: Frame
    payloads: Frame
    epoch: int = 0
    is_ahead: bool = rarely_set(default=False)


@message
class Changed(Message):
    """Answers ``Change`` and ``Settle``, for each key in order.

    ``outcomes`` has a byte for each key, a ``ChangeOutcome``. ``versions`` has a number for each
    key: the version after the change, else the present one, 0 for an absent register; if a request
    is forgotten, the number that another one must exceed. ``expiries`` has a number for each key
    of a ``Settle`` (milliseconds since 1970, 0 for never). ``rejected``
    has ``[position, code, text]`` for each rejected key. ``values`` has a byte string for each key:
    the answer of the operation, nil if there is none.
    """

    KIND = 27
    outcomes: bytes
    versions: bytes
    expiries: bytes
    rejected: list[list[Any]]
    values: Frame


@message
class Settle(Message):
    """Reads registers, linearizably; answered by ``Changed``."""

    KIND = 28
    index: str
    keys: Frame


class Amounts(NamedTuple):
    """The numbers of an increment; outside the bounds it changes nothing."""

    amount: int
    initial: int = 0
    at_least: int = MIN_INTEGER
    at_most: int = MAX_INTEGER


def pack_amounts(amounts: Amounts) -> bytes:
    """Return the numbers of an increment as they are sent: 4 signed numbers, 32 bytes."""
    return _AMOUNTS.pack(*amounts)


def unpack_amounts(packed: bytes, count: int) -> list[Amounts]:
    """Return the numbers of an increment for each of ``count`` keys.

    Raises:
        ProtocolError: they are neither for all keys together nor for each of them.
    """
    size = _AMOUNTS.size
    if len(packed) not in (size, size * count):
        raise ProtocolError(f"{count} keys have {len(packed)} bytes of amounts; {size} each")
    found = [Amounts(*fields) for fields in _AMOUNTS.iter_unpack(packed)]
    return found if len(found) == count else found * count


def pack_numbers(numbers: Sequence[int]) -> bytes:
    """Return numbers below 2**64 as they are sent."""
    return struct.pack(f">{len(numbers)}Q", *numbers)


def unpack_numbers(packed: bytes) -> list[int]:
    """Return numbers from their form in messages.

    Raises:
        ProtocolError: the length is not that of a sequence of numbers.
    """
    if len(packed) % _NUMBER_BYTES:
        raise ProtocolError(f"{len(packed)} bytes are not a sequence of numbers of 8 bytes")
    return list(struct.unpack(f">{len(packed) // _NUMBER_BYTES}Q", packed))


def unpack_expected(packed: bytes, count: int) -> list[int]:
    """Return the expected version of each of ``count`` keys.

    Raises:
        ProtocolError: there are too few or too many.
    """
    found = unpack_numbers(packed)
    if len(found) not in (0, 1, count):
        raise ProtocolError(f"{count} keys have {len(found)} expected versions")
    return found if len(found) == count else (found or [ANY]) * count
