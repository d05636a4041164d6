"""The enumerations that every layer shares: levels, durabilities, outcomes, record flags."""

from __future__ import annotations

from enum import IntFlag, StrEnum
from typing import Final, Literal, Self

from dstash.errors import UsageError
from dstash.outcome import Outcome

__all__ = [
    "NEVER",
    "AnyLevel",
    "AnyOnError",
    "Durability",
    "Level",
    "OnError",
    "Outcome",
    "RecordFlag",
    "Word",
]


class Word(StrEnum):
    """An enumeration whose values users type."""

    @classmethod
    def parse(cls, text: str | Self) -> Self:
        """Return the member with that value; ``UsageError`` lists the allowed values."""
        if type(text) is cls:
            return text
        try:
            return cls(text)
        except ValueError:
            allowed = " | ".join(member.value for member in cls)
            name = "".join(f"_{char}" if char.isupper() else char for char in cls.__name__)
            name = name.removeprefix("_").lower()
            raise UsageError(f"{name} {text!r} is not one of {allowed}") from None


class Level(Word):
    """How many replicas must answer before a call returns (Dynamo's R and W)."""

    ONE = "one"
    QUORUM = "quorum"
    ALL = "all"

    def needed(self, replicas: int) -> int:
        """Return how many of ``replicas`` must answer at this level."""
        if self is Level.ONE:
            return min(1, replicas)
        if self is Level.QUORUM:
            return replicas // 2 + 1
        return replicas


#: A level, as calls take it.
AnyLevel = Level | Literal["one", "quorum", "all"]

#: How a client compresses the values that it writes.
Compression = Literal["none", "zstd"]


class Durability(Word):
    """When a commit is synced: before its ack, once per interval, or when the OS decides."""

    SYNC = "sync"
    INTERVAL = "interval"
    NONE = "none"


class OnError(Word):
    """What a call for many keys does if it failed for some of them: raise, or return the rest."""

    RAISE = "raise"
    RETURN = "return"


#: ``on_error`` as an argument of a call.
AnyOnError = OnError | Literal["raise", "return"]


class RecordFlag(IntFlag):
    """Bits of a record's flag byte.

    ``RESTORED``: the record is from a backup of another cluster. It keeps the stamp of its write.
    Horizons use its last touch instead, because this cluster has never deleted it.

    ``REGISTER``: replicas agree on the record by ballots (see ``dstash/store/register``).
    """

    NONE = 0
    TOMBSTONE = 1
    RESTORED = 2
    REGISTER = 4


#: Expiry of a record that never expires.
NEVER: Final = 0
