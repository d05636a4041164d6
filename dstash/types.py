"""The small vocabulary shared by every layer: levels, durabilities, outcomes."""

from __future__ import annotations

from enum import IntFlag, StrEnum
from typing import Final, Self

from dstash.errors import UsageError

#: An encoded value: one complete msgpack object. Peers never look inside.
Payload = bytes


class Word(StrEnum):
    """An enumeration whose members are the words users type."""

    @classmethod
    def parse(cls, text: str | Self) -> Self:
        """Return the member that ``text`` names; ``UsageError`` lists the allowed words."""
        try:
            return cls(text)
        except ValueError:
            allowed = " | ".join(member.value for member in cls)
            raise UsageError(f"{cls.__name__.lower()} {text!r} is not one of {allowed}") from None


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


class Durability(Word):
    """When a commit reaches the disk: before each ack, once per interval, or when the OS likes."""

    SYNC = "sync"
    INTERVAL = "interval"
    NONE = "none"


class Outcome(Word):
    """What became of one key of a write.

    ``UNKNOWN`` is not a failure: the request may have been stored, its answer did not come.
    """

    STORED = "stored"
    SUPERSEDED = "superseded"
    FAILED = "failed"
    UNKNOWN = "unknown"


class RecordFlag(IntFlag):
    """Bits of a record's flag byte.

    ``RESTORED``: the record is from a backup of another cluster. It keeps the stamp of its write,
    and horizons judge it by its last touch, for this cluster never deleted it.
    """

    NONE = 0
    TOMBSTONE = 1
    RESTORED = 2


#: Expiry of a record that never expires.
NEVER: Final = 0
